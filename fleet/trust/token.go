package trust

// Kind says what a token is good for.
type Kind string

// The kinds of tokens.
const (
	Join    Kind = "join"    // to become a master
	Publish Kind = "publish" // to publish from another machine
)
