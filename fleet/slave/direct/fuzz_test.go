package direct

import (
	"bytes"
	"testing"
)

// FuzzParseSocket reads any answer to a question about sockets.
func FuzzParseSocket(f *testing.F) {
	f.Add(make([]byte, diagMsgSize))
	f.Add(make([]byte, diagMsgSize-1))
	whole := append(make([]byte, diagMsgSize), 0xe8, 0, diagInfo, 0)
	whole[0] = 2
	f.Add(append(whole, bytes.Repeat([]byte{1}, 0xe4)...))
	f.Add(append(whole, 1, 2, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSocket(b)
		if err == nil && (!s.Local.Addr().IsValid() || !s.Remote.Addr().IsValid() || s.Silent < 0) {
			t.Errorf("%+v", s)
		}
	})
}
