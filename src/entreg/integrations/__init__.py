"""The same controllers in trainers that others wrote, one file a host; each imports its host, so import the file and not this package."""
