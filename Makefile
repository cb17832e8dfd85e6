# The two commands of README.md, and a few that they are made of. All of them need root.
.PHONY: demo test build lint deny

demo:
	./scripts/prerequisites
	cargo build --release --locked --workspace --bins
	target/release/holdfast lab demo

test:
	./scripts/prerequisites
	./scripts/test

build:
	cargo build --release --locked --workspace --bins

lint:
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings

# Licences, advisories, sources: needs cargo-deny (`cargo install --locked cargo-deny`).
deny:
	cargo deny --locked check
