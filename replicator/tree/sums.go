package tree

import (
	"cmp"
	"slices"
)

// fewWide is the least number of objects of about a size that are hashed faster side by side than one after the other.
const fewWide = 6

// Sums sets digests to the digests of objects, one each. Where the processor can hash several at once, and crypto/sha256
// does not make use of it, it is several times faster than Sum of each.
func Sums(digests []Digest, objects [][]byte) {
	digests = digests[:len(objects)]
	if len(objects) < fewWide || !wide() {
		for i := range objects {
			digests[i] = Sum(objects[i])
		}
		return
	}
	order := make([]int, len(objects))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(len(objects[b]), len(objects[a])) })
	// An object that is much longer than the others would be alone in the end, and that is slow.
	for len(order) > 0 && (len(order) < fewWide || len(objects[order[fewWide-1]]) < len(objects[order[0]])/2) {
		digests[order[0]] = Sum(objects[order[0]])
		order = order[1:]
	}
	if len(order) > 0 {
		sumWide(digests, objects, order)
	}
}
