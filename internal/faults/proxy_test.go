package faults

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/oodmon/oodmon/internal/kafkatest"
)

// The requests that faults wait for, by their numbers in Kafka's protocol.
const (
	apiProduce            = 0
	apiFetch              = 1
	apiOffsetCommit       = 8
	apiHeartbeat          = 12
	apiInitProducerID     = 22
	apiAddPartitionsToTxn = 24
	apiAddOffsetsToTxn    = 25
	apiEndTxn             = 26
	apiTxnOffsetCommit    = 28
)

// A frame is a request on its way to a broker, or the answer on its way back.
type frame struct {
	client string // the client id
	api    int16
	answer bool
}

// A verdict says what becomes of a frame.
type verdict struct {
	wait time.Duration
	cut  bool // drop it, and close the connection
}

// A wire is a proxy that knows where Kafka's requests and answers begin and end.
type wire struct {
	listener net.Listener
	upstream string
	open     sync.WaitGroup

	mu   sync.Mutex
	rule func(frame) verdict
}

// startWire proxies listen to upstream until the test ends. rule is asked for
// every frame, from many goroutines, one at a time.
func startWire(t testing.TB, listen, upstream string) *wire {
	t.Helper()
	var l net.Listener
	kafkatest.Eventually(t, portTaken, func() (err error) {
		l, err = net.Listen("tcp", listen)
		return err
	})
	w := &wire{listener: l, upstream: upstream}
	w.open.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			w.open.Go(func() { w.serve(conn) })
		}
	})
	t.Cleanup(func() { _ = l.Close() })
	return w
}

// set replaces the rule; nil lets everything pass.
func (w *wire) set(rule func(frame) verdict) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rule = rule
}

func (w *wire) judge(f frame) verdict {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.rule == nil {
		return verdict{}
	}
	return w.rule(f)
}

func (w *wire) serve(client net.Conn) {
	defer client.Close()
	broker, err := net.Dial("tcp", w.upstream)
	if err != nil {
		return
	}
	defer broker.Close()
	asked := make(chan frame, 1024) // brokers answer in the order of the requests
	go func() {
		defer client.Close()
		defer broker.Close()
		var head [4]byte
		for {
			if _, err := io.ReadFull(broker, head[:]); err != nil {
				return
			}
			f := <-asked
			f.answer = true
			v := w.judge(f)
			time.Sleep(v.wait)
			if v.cut || !pass(client, broker, head[:], nil) {
				return
			}
		}
	}()
	for {
		var head [4]byte
		if _, err := io.ReadFull(client, head[:]); err != nil {
			return
		}
		// Key, version, correlation, and the client id.
		start := make([]byte, min(10, binary.BigEndian.Uint32(head[:])))
		if _, err := io.ReadFull(client, start); err != nil || len(start) < 10 {
			return
		}
		id := make([]byte, max(0, int16(binary.BigEndian.Uint16(start[8:]))))
		if _, err := io.ReadFull(client, id); err != nil {
			return
		}
		f := frame{client: string(id), api: int16(binary.BigEndian.Uint16(start))}
		v := w.judge(f)
		time.Sleep(v.wait)
		if v.cut {
			return
		}
		asked <- f
		if !pass(broker, client, head[:], append(start, id...)) {
			return
		}
	}
}

// pass copies a frame whose size and beginning have been read.
func pass(to, from net.Conn, head, start []byte) bool {
	if _, err := to.Write(append(head[:len(head):len(head)], start...)); err != nil {
		return false
	}
	_, err := io.CopyN(to, from, int64(binary.BigEndian.Uint32(head))-int64(len(start)))
	return err == nil
}
