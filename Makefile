# The two commands of README.md, and a few that they are made of. All of them need root.
.PHONY: demo test soak csi-sanity kubernetes-e2e build lint deny

demo:
	./scripts/prerequisites
	cargo build --release --locked --workspace --bins
	target/release/holdfast lab demo

test:
	./scripts/prerequisites
	./scripts/test

# The suite that every CSI driver is measured with, against the real plugins on a lab (docs/csi.md). Part
# of `make test`, too.
csi-sanity:
	./scripts/prerequisites
	cargo build --release --locked --workspace --bins
	cargo test --release --locked --workspace --test csi_sanity

# PostgreSQL under fire, as long as wanted: `make soak ROUNDS=500 SEED=7`.
ROUNDS ?= 50
SEED ?= 0
soak:
	./scripts/prerequisites
	cargo build --release --locked --workspace --bins
	target/release/holdfast lab soak --rounds $(ROUNDS) --seed $(SEED)

build:
	cargo build --release --locked --workspace --bins

lint:
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings

# Licences, advisories, sources: needs cargo-deny (`cargo install --locked cargo-deny`).
deny:
	cargo deny --locked check

# The scenarios on a real Kubernetes cluster with Holdfast installed (docs/install.md): KUBECONFIG, or
# HOLDFAST_E2E_KUBECTL; HOLDFAST_E2E_FAULTS names a directory with programs that cut off, heal, crash and
# boot a node (tests/kubernetes/src/bed.rs). Without a cluster each scenario says that it is skipped.
kubernetes-e2e:
	cargo test --release --locked -p kubernetes -- --nocapture --test-threads=1
