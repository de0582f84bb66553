package rpc

import (
	"bytes"
	"encoding/binary"
)

// Numbers of RFC 5531, section 9.
const (
	msgCall  = 0
	msgReply = 1

	replyAccepted = 0
	replyDenied   = 1

	acceptSuccess      = 0
	acceptProgUnavail  = 1
	acceptProgMismatch = 2
	acceptProcUnavail  = 3
	acceptGarbageArgs  = 4
	acceptSystemErr    = 5

	rejectRPCMismatch = 0
	rejectAuthError   = 1

	authBadCred = 1
	authBadVerf = 3

	rpcVersion = 2
	maxAuth    = 400 // bytes of an opaque_auth body
	maxMachine = 255
	maxGIDs    = 16
)

// verdict is what became of reading a call's header.
type verdict uint8

const (
	headerOK      verdict = iota
	headerNoCall          // too short to be answered, or not a call: the peer does not speak RPC
	headerVersion         // another RPC version: RPC_MISMATCH
	headerBadCred         // AUTH_BADCRED: no such flavor here, or it cannot be decoded
	headerBadVerf         // AUTH_BADVERF
)

// parse reads the header of the call in rec, a whole record, into c. With any verdict but headerNoCall the XID is set.
func (c *Call) parse(rec []byte) verdict {
	if len(rec) < 24 {
		return c.parseShort(rec)
	}
	be := binary.BigEndian
	c.XID = be.Uint32(rec)
	if be.Uint32(rec[4:]) != msgCall {
		return headerNoCall
	}
	if be.Uint32(rec[8:]) != rpcVersion {
		return headerVersion
	}
	c.Prog, c.Vers, c.Proc = be.Uint32(rec[12:]), be.Uint32(rec[16:]), be.Uint32(rec[20:])
	c.Cost = 0
	d := Decoder{b: rec[24:]}
	raw := d.b
	flavor := d.Uint32()
	body := d.Opaque(maxAuth)
	if d.bad {
		return headerBadCred
	}
	raw = raw[:len(raw)-len(d.b)]
	if !bytes.Equal(raw, c.rawCred) && !c.parseCred(flavor, body, raw) {
		return headerBadCred
	}
	d.Uint32()
	d.Opaque(maxAuth)
	if d.bad {
		return headerBadVerf
	}
	c.Args = d.b
	return headerOK
}

// parseShort judges a record that cannot be a whole call header.
func (c *Call) parseShort(rec []byte) verdict {
	d := Decoder{b: rec}
	c.XID = d.Uint32()
	kind, version := d.Uint32(), d.Uint32()
	switch {
	case d.bad || kind != msgCall:
		return headerNoCall
	case version != rpcVersion:
		return headerVersion
	}
	return headerBadCred
}

// parseCred decodes a credential and remembers its bytes. A machine name and gids stay valid with the remembered bytes.
func (c *Call) parseCred(flavor uint32, body, raw []byte) bool {
	c.rawCred = c.rawCred[:0]
	c.Cred = Cred{Flavor: flavor}
	switch flavor {
	case AuthNone:
	case AuthSys:
		c.rawCred = append(c.rawCred, raw...)
		// flavor and length come before the body
		if d := (Decoder{b: c.rawCred[8 : 8+len(body)]}); !c.parseSys(&d) {
			c.rawCred = c.rawCred[:0]
			return false
		}
		return true
	default:
		return false
	}
	c.rawCred = append(c.rawCred, raw...)
	return true
}

// parseSys decodes authsys_parms.
func (c *Call) parseSys(d *Decoder) bool {
	c.Cred.Stamp = d.Uint32()
	c.Cred.Machine = d.Opaque(maxMachine)
	c.Cred.UID, c.Cred.GID = d.Uint32(), d.Uint32()
	n := d.Uint32()
	if n > maxGIDs {
		return false
	}
	for i := range n {
		c.gids[i] = d.Uint32()
	}
	c.Cred.GIDs = c.gids[:n]
	return !d.bad
}

// markSize is the record mark that comes before a reply over TCP; acceptedSize is it and the header of an accepted reply.
const (
	markSize     = 4
	acceptedSize = markSize + 24
)

// appendAccepted appends a record mark, to be set by finishRecord, and the header of an accepted reply.
func appendAccepted(dst []byte, xid, stat uint32) []byte {
	var h [acceptedSize]byte
	binary.BigEndian.PutUint32(h[4:], xid)
	h[11] = msgReply // then MSG_ACCEPTED and a verifier of flavor AUTH_NONE and no bytes: zeros
	binary.BigEndian.PutUint32(h[24:], stat)
	return append(dst, h[:]...)
}

// finishRecord sets the mark of the one-fragment record that begins at dst[at], and has a body of so many bytes besides.
func finishRecord(dst []byte, at, body int) {
	binary.BigEndian.PutUint32(dst[at:], lastFragment|uint32(len(dst)-at-markSize+body))
}

// appendDenial appends the record that answers a header with a bad verdict.
func appendDenial(dst []byte, xid uint32, v verdict) []byte {
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = AppendUint32(dst, xid)
	dst = AppendUint32(dst, msgReply)
	dst = AppendUint32(dst, replyDenied)
	switch v {
	case headerVersion:
		dst = AppendUint32(dst, rejectRPCMismatch)
		dst = AppendUint32(dst, rpcVersion)
		dst = AppendUint32(dst, rpcVersion)
	case headerBadVerf:
		dst = AppendUint32(dst, rejectAuthError)
		dst = AppendUint32(dst, authBadVerf)
	default:
		dst = AppendUint32(dst, rejectAuthError)
		dst = AppendUint32(dst, authBadCred)
	}
	finishRecord(dst, at, 0)
	return dst
}
