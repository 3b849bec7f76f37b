# `make run` and `make test` need Python 3.10+ and nothing else: setup.sh makes the environment once.
.PHONY: run test lint check soak docs test-triton test-verl test-postgres clean
run test lint check soak docs test-triton test-verl test-postgres:
	@./setup.sh $@
clean:
	rm -rf .venv site .venv-triton .venv-verl
