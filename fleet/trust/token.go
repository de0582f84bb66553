package trust

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"strconv"
	"strings"
	"unicode"
)

// Kind says what a token is good for.
type Kind string

// The kinds of tokens.
const (
	Join    Kind = "join"    // to become a master
	Publish Kind = "publish" // to publish from another machine
)

// The first characters of a token's text: what it is for, and the version of what follows.
var prefixes = map[Kind]string{Join: "nfj1_", Publish: "nfp1_"}

// Sizes of what a token's text holds.
const (
	idLen        = 8  // characters: 40 bits
	secretLen    = 32 // characters: 160 bits
	maxAddresses = 16
	maxTokenText = 8192
)

// ErrBadToken is wrapped by what ParseToken says. The message never shows the secret.
var ErrBadToken = errors.New("not a token of nfs-fleet")

// letters is the alphabet of tokens: what a double click selects and nobody mistakes for something else.
var letters = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Token is what lets somebody without a certificate in.
type Token struct {
	Kind      Kind
	ID        string // names it in lists; no secret
	Secret    string
	CA        Fingerprint // of the fleet that it is for
	Addresses []string    // host:port of peer listeners, in the order to try them
}

// NewToken returns a new token with an ID and a secret of its own.
func NewToken(kind Kind, ca Fingerprint, addresses []string) Token {
	return Token{Kind: kind, ID: random(idLen), Secret: NewSecret(), CA: ca, Addresses: addresses}
}

// NewSecret returns 160 random bits as text.
func NewSecret() string { return random(secretLen) }

func random(characters int) string {
	b := make([]byte, letters.DecodedLen(characters))
	rand.Read(b) // never fails
	return letters.EncodeToString(b)
}

// HashSecret is what is stored of a secret: the SHA-256 in hexadecimal. The secret's own randomness makes it safe to do
// without a salt.
func HashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// Matches reports whether hash is that of secret, in a time that tells nothing.
func Matches(secret, hash string) bool {
	return subtle.ConstantTimeCompare([]byte(HashSecret(secret)), []byte(hash)) == 1
}

// String returns the token as one word of letters, digits and one underscore, with a checksum. It holds the secret. Of
// more than 16 addresses it holds the first 16.
func (t Token) String() string {
	head := prefixes[t.Kind] + t.ID + t.Secret
	tail := strings.Join(t.Addresses[:min(len(t.Addresses), maxAddresses)], ",")
	body := append(t.CA[:], tail...)
	return head + letters.EncodeToString(binary.BigEndian.AppendUint32(body, checksum(head, body)))
}

func checksum(head string, body []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE([]byte(head)), crc32.IEEETable, body)
}

// ParseToken reads what String wrote. White space is passed over wherever it is, so that a text that was wrapped by a
// terminal or a mail is as good. Errors wrap ErrBadToken.
func ParseToken(text string) (Token, error) {
	if len(text) > maxTokenText {
		return Token{}, fmt.Errorf("%w: %d characters are too many", ErrBadToken, len(text))
	}
	text = strings.ToLower(strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, text))
	var t Token
	switch {
	case strings.HasPrefix(text, prefixes[Join]):
		t.Kind = Join
	case strings.HasPrefix(text, prefixes[Publish]):
		t.Kind = Publish
	case text == "":
		return t, fmt.Errorf("%w: it is empty", ErrBadToken)
	case strings.HasPrefix(text, "nfj") || strings.HasPrefix(text, "nfp"):
		return t, fmt.Errorf("%w that this version knows: it is damaged, or made by a newer nfs-fleet", ErrBadToken)
	default:
		return t, fmt.Errorf("%w: one begins with %s or %s", ErrBadToken, prefixes[Join], prefixes[Publish])
	}
	if err := t.parse(text, len(prefixes[t.Kind])); err != nil {
		return Token{}, err
	}
	return t, nil
}

var errDamaged = fmt.Errorf("%w: it is damaged or a part is missing: copy all of it", ErrBadToken)

// parse reads what follows the prefix.
func (t *Token) parse(text string, prefix int) error {
	head := prefix + idLen + secretLen
	if len(text) < head {
		return errDamaged
	}
	_, wrong := letters.DecodeString(text[prefix:head])
	body, err := letters.DecodeString(text[head:])
	end := len(body) - 4
	if wrong != nil || err != nil || end < len(t.CA) || letters.EncodeToString(body) != text[head:] {
		return errDamaged
	}
	if checksum(text[:head], body[:end]) != binary.BigEndian.Uint32(body[end:]) {
		return errDamaged
	}
	t.ID, t.Secret = text[prefix:prefix+idLen], text[prefix+idLen:head]
	tail := string(body[copy(t.CA[:], body):end])
	if tail == "" {
		return nil
	}
	t.Addresses = strings.Split(tail, ",")
	if len(t.Addresses) > maxAddresses {
		return fmt.Errorf("%w: it has %d addresses", ErrBadToken, len(t.Addresses))
	}
	for _, address := range t.Addresses {
		if err := validAddress(address); err != nil {
			return fmt.Errorf("%w: %w", ErrBadToken, err)
		}
	}
	return nil
}

func validAddress(s string) error {
	host, port, err := net.SplitHostPort(s)
	n, portErr := strconv.ParseUint(port, 10, 16)
	strange := strings.ContainsFunc(host, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune(".-_:%", r)
	})
	if err != nil || portErr != nil || n == 0 || host == "" || len(host) > 253 || strange {
		return fmt.Errorf("address %q: not host:port", s)
	}
	return nil
}
