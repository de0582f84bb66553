// Package store keeps objects on disk by their SHA-256.
package store
