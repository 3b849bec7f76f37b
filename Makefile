# `make run` and `make test` need Python 3.10+ and nothing else: setup.sh makes the environment once.
.PHONY: run test lint check soak test-triton clean
run test lint check soak test-triton:
	@./setup.sh $@
clean:
	rm -rf .venv .venv-triton
