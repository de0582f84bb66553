//go:build !amd64

package tree

func wide() bool { return false }

func sumWide([]Digest, [][]byte, []int) {}
