"""The sidecar beside its peers on the same upstream in the same run; see README.md."""
