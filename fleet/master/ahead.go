package master

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator"
	"github.com/nfs-fleet/nfs-fleet/replicator/peer"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// A leader announces what it stores by POST /peer/v1/shards/SHARD/ahead?era=…&epoch=…: the body is a stream (see
// peer.Announced), the answer, after its end, is a linkLine.

// Announce implements replicator.Peers.
func (p peers) Announce(ctx context.Context, master, shard string, era int, epoch int64, feed <-chan []tree.Part) error {
	client, base, err := p.links.client(master)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	body, stream := io.Pipe()
	written := make(chan struct{})
	go func() {
		defer close(written)
		stream.CloseWithError(writeAnnounced(ctx, stream, feed))
	}()
	defer func() {
		cancel()
		body.Close()
		<-written
	}()
	query := url.Values{"era": {strconv.Itoa(era)}, "epoch": {strconv.FormatInt(epoch, 10)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+shardPath(shard, "ahead")+"?"+query.Encode(), body)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return unreachable(ctx, master, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("master %s: %s", master, resp.Status) // one of an older version says 404
	}
	var line linkLine
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxLine)).Decode(&line); err != nil {
		return unreachable(ctx, master, err)
	}
	if line.Error != "" {
		return line.errOf(master)
	}
	return nil
}

// writeAnnounced writes what comes from feed, and signs of life when nothing does, until it is closed.
func writeAnnounced(ctx context.Context, w io.Writer, feed <-chan []tree.Part) error {
	alive := time.NewTicker(linkBeat)
	defer alive.Stop()
	var b []byte
	for {
		b = b[:0]
		select {
		case parts, more := <-feed:
			if !more {
				_, err := w.Write(peer.AppendAnnouncedAll(b))
				return err
			}
			b = peer.AppendAnnounced(b, parts)
		case <-alive.C:
			b = peer.AppendAnnounced(b, nil)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
}

// answerAhead fetches what a leader announces.
func (m *Master) answerAhead(w http.ResponseWriter, r *http.Request) {
	s, ok := m.shard(r.PathValue("shard"))
	from, err := m.callingMaster(r)
	era, err1 := strconv.Atoi(r.URL.Query().Get("era"))
	epoch, err2 := strconv.ParseInt(r.URL.Query().Get("epoch"), 10, 64)
	if err = errors.Join(err, err1, err2); err != nil || !ok {
		http.Error(w, fmt.Sprintf("announcement for shard %s: %v", r.PathValue("shard"), err), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(m.base, cancel)()
	control, in := http.NewResponseController(w), peer.NewAnnounced(r.Body)
	if err := control.EnableFullDuplex(); err != nil { // or else the answer to a stream that goes on would wait for its end
		m.log.Warn().Err(err).Msg("an announcement cannot be refused")
	}
	err = s.replica.Ahead(ctx, from, era, epoch, func(ctx context.Context) ([]tree.Part, error) {
		if err := control.SetReadDeadline(time.Now().Add(linkSilence)); err != nil {
			return nil, err
		}
		defer context.AfterFunc(ctx, func() { _ = control.SetReadDeadline(time.Now()) })()
		return in.Next()
	})
	if err == nil { // the end of the body follows the end of the stream, and must be read for the connection to go on
		_, err = io.Copy(io.Discard, io.LimitReader(r.Body, maxLine))
	}
	if err != nil {
		w.Header().Set("Connection", "close")
	}
	_ = control.SetReadDeadline(time.Time{})
	newLineWriter(w).end(nothing{}, err)
}

// FetchAhead implements replicator.Peers.
func (p peers) FetchAhead(ctx context.Context, master string, feed <-chan []tree.Part, progress func(replicator.Fetched)) error {
	return p.fetcher.Ahead(ctx, master, feed, func(f peer.Progress) {
		progress(replicator.Fetched{Objects: f.Objects, Bytes: f.Bytes})
	})
}
