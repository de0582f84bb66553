package hostile

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"
)

// datagrams sends nonsense, and calls whose arguments are, as packets. It is content without any answer.
func (c *campaign) datagrams(ctx context.Context, random *rand.Rand) error {
	conn, err := net.Dial("udp", c.Addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	for range 1000 {
		b := c.call(random, random.Uint32())[4:]
		switch random.IntN(4) {
		case 0:
			b = noise(random, random.IntN(9000))
		case 1:
			b = b[:random.IntN(len(b))]
		}
		if _, err := conn.Write(b); err != nil && !closed(err) {
			return err
		}
		c.done.Add(1)
		if pause(ctx, time.Millisecond); ctx.Err() != nil {
			break
		}
	}
	return nil
}

// http sends requests that are none, too long, never end, or ask for what is not there.
func (c *campaign) http(ctx context.Context, random *rand.Rand) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	paths := []string{"/", "/metrics", "/v1/status", "/v1/shards", "/v1/shards/www/publish", "/v1/" + string(noise(random, 20)), "/../../etc/passwd", "/" + strings.Repeat("a/", 4000)}
	methods := []string{"GET", "POST", "PUT", "DELETE", "CONNECT", "\x00"}
	path, method := paths[random.IntN(len(paths))], methods[random.IntN(len(methods))]
	body := noise(random, random.IntN(3000))
	request := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n", method, path)
	switch random.IntN(5) {
	case 0:
		request = string(body)
	case 1:
		request += strings.Repeat("X-Long: "+strings.Repeat("y", 1000)+"\r\n", 3000) + "\r\n"
	case 2:
		request += fmt.Sprintf("Content-Length: %d\r\n\r\n%s", 1<<40, body)
	case 3:
		request += "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + string(body)
	default:
		request += fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	_, _ = conn.Write([]byte(request)) // a server that has had enough closes
	c.done.Add(1)
	_ = conn.SetReadDeadline(time.Now().Add(time.Second)) // some of them wait for more, and may
	buf := make([]byte, 64<<10)
	for err == nil {
		_, err = conn.Read(buf)
	}
	return nil
}
