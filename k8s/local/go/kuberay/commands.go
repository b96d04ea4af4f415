//go:build commands

// Package commands names the program, so that `go mod tidy` keeps what it needs.
package commands

import _ "github.com/ray-project/kuberay/ray-operator"
