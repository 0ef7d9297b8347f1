package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// A cluster is a real Kafka whose nodes monitors reach through two proxies each:
// toxiproxy, which knows bytes and time, and behind it a wire, which knows
// Kafka's requests. The tests themselves reach it directly.
type cluster struct {
	*kafkatest.Broker
	nodes   int
	proxied string // the addresses for monitors
	wires   []*wire
	network []*toxiproxy.Proxy
	secured *security // nil: everybody is let in
}

// Where the listeners of a node are, from its first port on.
const (
	innerPort = 100 // the broker, for the wire
	wirePort  = 200 // the wire, for toxiproxy
	outerPort = 300 // toxiproxy, for monitors
)

func startCluster(t testing.TB, nodes int) *cluster {
	t.Helper()
	c := &cluster{nodes: nodes}
	c.begin(t, "PLAINTEXT")
	return c
}

// begin starts the broker and the proxies. A wire cannot look into TLS: then
// toxiproxy is before the broker itself.
func (c *cluster) begin(t testing.TB, protocol string, settings ...string) {
	t.Helper()
	port := freeRange(t)
	logger := zerolog.Nop()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), logger)
	t.Cleanup(func() { _ = server.Collection.Clear() })
	var addresses []string
	at := func(node, offset int) string { return fmt.Sprintf("127.0.0.1:%d", port+2*node+offset) }
	for node := range c.nodes {
		behind := at(node, innerPort)
		if protocol == "PLAINTEXT" {
			c.wires = append(c.wires, startWire(t, at(node, wirePort), behind))
			behind = at(node, wirePort)
		}
		p := toxiproxy.NewProxy(server, fmt.Sprint("node-", node), at(node, outerPort), behind)
		kafkatest.Eventually(t, portTaken, func() error { return server.Collection.Add(p, true) })
		c.network = append(c.network, p)
		addresses = append(addresses, at(node, outerPort))
	}
	c.proxied = `"` + strings.Join(addresses, `", "`) + `"`
	settings = append([]string{
		fmt.Sprintf("listeners=PLAINTEXT://127.0.0.1:{+0},CONTROLLER://127.0.0.1:{+1},PROXIED://127.0.0.1:{+%d}", innerPort),
		fmt.Sprintf("advertised.listeners=PLAINTEXT://127.0.0.1:{+0},PROXIED://127.0.0.1:{+%d}", outerPort),
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:" + protocol,
		fmt.Sprintf("min.insync.replicas=%d", (c.nodes+1)/2),
		"replica.lag.time.max.ms=5000",
	}, settings...)
	c.Broker = kafkatest.StartReal(t, c.nodes, port, settings...)
}

// portTaken is how long a port that was free may be taken: a process that is started
// while freeRange looks at it holds it until it runs its program.
const portTaken = 10 * time.Second

// guardPort is held as long as a range of ports is in use.
const guardPort = 399

// freeRange returns the first of a range of ports that nobody listens on, below
// those that the system gives to outgoing connections. It is the test's until it
// ends.
func freeRange(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 12000 + 400*rand.IntN(50)
		guard, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+guardPort))
		if err != nil {
			continue
		}
		free := true
		for _, offset := range []int{0, 1, 2, 3, 4, 5, innerPort, innerPort + 2, innerPort + 4, wirePort, wirePort + 2, wirePort + 4, outerPort, outerPort + 2, outerPort + 4} {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+offset))
			if err != nil {
				free = false
				break
			}
			_ = l.Close()
		}
		if free {
			t.Cleanup(func() { _ = guard.Close() })
			return port
		}
		_ = guard.Close()
	}
	t.Fatal("no range of ports is free")
	return 0
}

// rule sets what becomes of every frame, on every node.
func (c *cluster) rule(rule func(frame) verdict) {
	for _, w := range c.wires {
		w.set(rule)
	}
}

// toxic puts a toxic of toxiproxy on every node's connections until the returned
// function is called.
func (c *cluster) toxic(t testing.TB, kind string, toxicity float64, attributes string) (remove func()) {
	t.Helper()
	for _, p := range c.network {
		for _, stream := range []string{"upstream", "downstream"} {
			text := fmt.Sprintf(`{"name": "%s-%s", "type": %q, "stream": %q, "toxicity": %g, "attributes": %s}`, kind, stream, kind, stream, toxicity, attributes)
			if _, err := p.Toxics.AddToxicJson(strings.NewReader(text)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return func() {
		for _, p := range c.network {
			p.Toxics.ResetToxics(context.Background())
		}
	}
}

// cut closes every connection of the monitors and refuses new ones for a while.
func (c *cluster) cut(t testing.TB, d time.Duration) {
	t.Helper()
	for _, p := range c.network {
		p.Stop()
	}
	time.Sleep(d)
	for _, p := range c.network {
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
	}
}
