package kafkaconn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

const (
	dialTimeout    = 10 * time.Second
	requestTimeout = 30 * time.Second
	metadataTTL    = 2 * time.Second // how soon a moved leader is found
)

// A Client makes every connection to the brokers.
type Client struct {
	// Brokers are the addresses as they were configured.
	Brokers []string
	// Dialer makes single connections: group membership, and the check.
	Dialer *kafka.Dialer
	// Transport sends requests to whichever broker answers them.
	Transport *kafka.Transport
	// Kafka calls the administrative requests over Transport.
	Kafka *kafka.Client
}

// New reads the certificates and the password that cfg names. It doesn't
// connect.
func New(cfg Config) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	tlsConfig, err := cfg.TLS.load()
	if err != nil {
		return nil, err
	}
	mechanism, err := cfg.SASL.mechanism()
	if err != nil {
		return nil, err
	}
	transport := &kafka.Transport{
		ClientID: cfg.ClientID, TLS: tlsConfig, SASL: mechanism,
		DialTimeout: dialTimeout, IdleTimeout: time.Minute, MetadataTTL: metadataTTL,
	}
	return &Client{
		Brokers:   cfg.Brokers,
		Dialer:    &kafka.Dialer{ClientID: cfg.ClientID, Timeout: dialTimeout, TLS: tlsConfig, SASLMechanism: mechanism, DualStack: true},
		Transport: transport,
		Kafka:     &kafka.Client{Addr: kafka.TCP(cfg.Brokers...), Timeout: requestTimeout, Transport: transport},
	}, nil
}

// DialerUntil returns a Dialer whose connections end with ctx, whatever waits
// on them.
func (c *Client) DialerUntil(ctx context.Context) *kafka.Dialer {
	d := *c.Dialer
	d.DialFunc = func(dialing context.Context, network, address string) (net.Conn, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		conn, err := new(net.Dialer).DialContext(dialing, network, address)
		if err != nil {
			return nil, err
		}
		return &boundConn{Conn: conn, release: context.AfterFunc(ctx, func() { _ = conn.Close() })}, nil
	}
	return &d
}

// A boundConn is closed with a context.
type boundConn struct {
	net.Conn
	release func() bool
}

func (c *boundConn) Close() error {
	c.release()
	return c.Conn.Close()
}

func (c *SASLConfig) mechanism() (sasl.Mechanism, error) {
	if c.Mechanism == "" {
		return nil, nil
	}
	password, err := c.password()
	if err != nil {
		return nil, err
	}
	switch c.Mechanism {
	case "scram-sha-256":
		return scram.Mechanism(scram.SHA256, c.Username, password)
	case "scram-sha-512":
		return scram.Mechanism(scram.SHA512, c.Username, password)
	default:
		return plain.Mechanism{Username: c.Username, Password: password}, nil
	}
}

// Close closes the idle connections.
func (c *Client) Close() { c.Transport.CloseIdleConnections() }

// Check reaches a broker and asks it for the topics. The error names each
// broker that could not be reached and says why, or the topics that are
// missing. kafka-go's Client reports a wrong password as an unknown topic, so
// nothing else may be asked before.
func (c *Client) Check(ctx context.Context, topics ...string) error {
	var all []error
	for _, broker := range c.Brokers {
		conn, err := c.Dialer.DialContext(ctx, "tcp", broker)
		if err != nil {
			all = append(all, fmt.Errorf("kafka broker %s: %w", broker, c.explain(err)))
			continue
		}
		if err := conn.Close(); err != nil {
			all = append(all, fmt.Errorf("kafka broker %s: %w", broker, err))
			continue
		}
		return c.checkTopics(ctx, topics)
	}
	return errors.Join(all...)
}

func (c *Client) checkTopics(ctx context.Context, topics []string) error {
	meta, err := Retry(ctx, func() (*kafka.MetadataResponse, error) {
		return c.Kafka.Metadata(ctx, &kafka.MetadataRequest{Topics: topics})
	})
	if err != nil {
		return fmt.Errorf("kafka broker %s: read metadata: %w", strings.Join(c.Brokers, ", "), err)
	}
	var all []error
	for _, topic := range topics {
		at := slices.IndexFunc(meta.Topics, func(t kafka.Topic) bool { return t.Name == topic })
		switch {
		case at < 0 || errors.Is(meta.Topics[at].Error, kafka.UnknownTopicOrPartition):
			all = append(all, fmt.Errorf("kafka topic %s does not exist: create it, or correct the configuration", topic))
		case errors.Is(meta.Topics[at].Error, kafka.TopicAuthorizationFailed):
			all = append(all, fmt.Errorf("kafka topic %s: the user may not see it: grant it Describe, and Read or Write: %w", topic, meta.Topics[at].Error))
		case meta.Topics[at].Error != nil:
			all = append(all, fmt.Errorf("kafka topic %s: %w", topic, meta.Topics[at].Error))
		}
	}
	return errors.Join(all...)
}

// explain adds what to do to the errors that people meet most.
func (c *Client) explain(err error) error {
	if errors.Is(err, kafka.SASLAuthenticationFailed) {
		return fmt.Errorf("the broker refused the user or the password: check kafka.sasl: %w", err)
	}
	if errors.Is(err, kafka.UnsupportedSASLMechanism) {
		return fmt.Errorf("the broker does not offer this mechanism: check kafka.sasl.mechanism: %w", err)
	}
	if unknown, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Errorf("the certificate is signed by an authority that is not trusted: check kafka.tls.ca_file: %w", unknown)
	}
	if name, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Errorf("the certificate is for another name: check the address or kafka.tls.server_name: %w", name)
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return fmt.Errorf("the certificate has expired or is not valid yet: renew it on the broker: %w", invalid)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fmt.Errorf("the broker does not speak TLS on this port: check kafka.tls.enabled and the port: %w", err)
	}
	if _, ok := errors.AsType[*net.OpError](err); !ok && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		return fmt.Errorf("the broker closed the connection: it may expect TLS or another SASL mechanism: %w", err)
	}
	return err
}

// Retry calls fn until it succeeds, five times at most, with pauses that grow:
// the first call over a pooled connection fails after a broker's restart, and
// a fresh broker's coordinators take a moment.
func Retry[T any](ctx context.Context, fn func() (T, error)) (T, error) {
	pause := 100 * time.Millisecond
	for try := 1; ; try++ {
		v, err := fn()
		if err == nil || try == 5 || ctx.Err() != nil {
			return v, err
		}
		if err := Sleep(ctx, pause); err != nil {
			return v, err
		}
		pause *= 2
	}
}

// Sleep waits for d, or until ctx is done; then it returns why.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
