.PHONY: demo test
demo:
	./scripts/prerequisites
test:
	./scripts/prerequisites
