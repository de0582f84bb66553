//go:build race

package rpc

// raceEnabled: sync.Pool throws things away at random under the race detector, so allocations are not counted there.
const raceEnabled = true
