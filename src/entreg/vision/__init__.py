"""What the image recipes share: data, few labels of many, augmentation, networks, and the two entropies of unlabelled data."""
