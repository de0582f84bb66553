package trust

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

func someToken(addresses ...string) Token {
	var ca Fingerprint
	for i := range ca {
		ca[i] = byte(i)
	}
	return NewToken(Join, ca, addresses)
}

func TestTokenRoundTrip(t *testing.T) {
	for _, kind := range []Kind{Join, Publish} {
		for _, addresses := range [][]string{nil, {"10.0.0.1:7050"}, {"m1.example.com:7050", "[2001:db8::1]:7051", "[fe80::1%eth0]:1"}} {
			want := someToken(addresses...)
			want.Kind = kind
			text := want.String()
			if !regexp.MustCompile(`^nf[jp]1_[a-z2-7]+$`).MatchString(text) {
				t.Errorf("%q is not one word to copy", text)
			}
			for _, form := range []string{text, " " + text + "\r\n", text[:70] + "\n   " + text[70:], strings.ToUpper(text)} {
				if got, err := ParseToken(form); err != nil || !reflect.DeepEqual(got, want) {
					t.Errorf("%q came back as %+v, %v", form, got, err)
				}
			}
		}
	}
}

func TestTokenNamesAtMost16Addresses(t *testing.T) {
	var many []string
	for i := range 50 {
		many = append(many, fmt.Sprintf("10.0.0.%d:7050", i))
	}
	if got, err := ParseToken(someToken(many...).String()); err != nil || !reflect.DeepEqual(got.Addresses, many[:16]) {
		t.Errorf("%v, %v", got.Addresses, err)
	}
}

func TestDamagedTokens(t *testing.T) {
	good := someToken("10.0.0.1:7050")
	text := good.String()
	for name, bad := range map[string]string{
		"nothing": "", "white space": " \n", "another word": "hello", "a prefix": "nfj1_", "a newer version": strings.Replace(text, "nfj1_", "nfj2_", 1),
		"another kind": strings.Replace(text, "nfj1_", "nfp1_", 1), "two of them": text + text, "very long": strings.Repeat(text, 100),
		"not ASCII": text[:20] + "é" + text[20:],
	} {
		checkRefused(t, name, bad, good.Secret)
	}
	for i := range text {
		checkRefused(t, fmt.Sprintf("the first %d", i), text[:i], good.Secret)
		other := byte('x')
		if text[i] == other {
			other = 'y'
		}
		checkRefused(t, fmt.Sprintf("character %d changed", i), text[:i]+string(other)+text[i+1:], good.Secret)
	}
	for _, address := range []string{"host", "host:", ":7050", "host:0", "host:65536", "host:http", "ho st:1", "h/x:1", "é:1", "a:1,", strings.Repeat("h", 254) + ":1"} {
		checkRefused(t, address, someToken(address).String(), good.Secret)
	}
	odd := good
	odd.Secret = strings.Repeat("0", secretLen)
	checkRefused(t, "a secret of other letters", odd.String(), odd.Secret)
}

func checkRefused(t *testing.T, name, text, secret string) {
	t.Helper()
	got, err := ParseToken(text)
	switch {
	case !errors.Is(err, ErrBadToken):
		t.Errorf("%s: %v, want ErrBadToken", name, err)
	case strings.Contains(err.Error(), secret[:8]):
		t.Errorf("%s: the message shows the secret: %v", name, err)
	case !reflect.DeepEqual(got, Token{}):
		t.Errorf("%s: half a token came with the error", name)
	}
}

func TestSecrets(t *testing.T) {
	a, b := NewSecret(), NewSecret()
	if a == b || len(a) != secretLen {
		t.Errorf("%q, %q", a, b)
	}
	if !Matches(a, HashSecret(a)) || Matches(a, HashSecret(b)) || Matches(a, "") || Matches("", "") {
		t.Error("a secret matches what is not its hash, or not what is")
	}
	// What is stored must mean the same in every version: sha256sum of the secret.
	if got := HashSecret("abc"); got != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Errorf("HashSecret(abc) = %s", got)
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(someToken("10.0.0.1:7050", "[::1]:2").String())
	f.Add(someToken().String())
	f.Add("nfj1_")
	f.Add("nfp1_aaaaaaaa")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseToken(text)
		if err != nil {
			if !errors.Is(err, ErrBadToken) || !reflect.DeepEqual(got, Token{}) {
				t.Errorf("%+v, %v", got, err)
			}
			return
		}
		if again, err := ParseToken(got.String()); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%+v came back as %+v, %v", got, again, err)
		}
	})
}
