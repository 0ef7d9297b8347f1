package kafkaconn

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	signer "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/aws_msk_iam_v2"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

const (
	dialTimeout    = 10 * time.Second // for as many brokers as are tried
	connectTimeout = 3 * time.Second  // of one: a host that is off says nothing
	requestTimeout = 30 * time.Second
	metadataTTL    = 2 * time.Second // how soon a moved leader is found
)

// A Client makes every connection to the brokers.
type Client struct {
	// ClientID is how brokers know the client, in their logs and quotas.
	ClientID string
	// Brokers are the addresses as they were configured.
	Brokers []string
	// Dialer makes single connections: group membership, and the check.
	Dialer *kafka.Dialer
	// Transport sends requests to whichever broker answers them.
	Transport *kafka.Transport
	// Kafka calls the administrative requests over Transport.
	Kafka *kafka.Client

	tls       TLSConfig
	principal string // of access lists
	iam       bool   // and not those of Kafka
}

// New reads the certificates and the password that cfg names. It doesn't
// connect.
func New(cfg Config) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.TLS.Enabled {
		if _, err := cfg.TLS.load(); err != nil {
			return nil, err
		}
	}
	mechanism, err := cfg.SASL.mechanism()
	if err != nil {
		return nil, err
	}
	c := &Client{
		ClientID: cfg.ClientID, Brokers: cfg.Brokers, tls: cfg.TLS,
		principal: principalOf(&cfg), iam: cfg.SASL.Mechanism == awsMSKIAM,
	}
	c.Dialer = &kafka.Dialer{ClientID: cfg.ClientID, Timeout: dialTimeout, DialFunc: c.dial, SASLMechanism: mechanism}
	c.Transport = &kafka.Transport{
		ClientID: cfg.ClientID, Dial: c.dial, SASL: mechanism,
		DialTimeout: dialTimeout, IdleTimeout: time.Minute, MetadataTTL: metadataTTL,
	}
	c.Kafka = &kafka.Client{Addr: kafka.TCP(cfg.Brokers...), Timeout: requestTimeout, Transport: c.Transport}
	return c, nil
}

// dial connects to a broker. With TLS, the files of authorities and certificates are
// read for every connection, so that renewed ones take effect without a restart.
func (c *Client) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, network, address)
	if err != nil || !c.tls.Enabled {
		return conn, err
	}
	secured, err := c.secure(ctx, conn, address)
	if err != nil {
		_ = conn.Close() // a failure changes nothing
		return nil, err
	}
	return secured, nil
}

func (c *Client) secure(ctx context.Context, conn net.Conn, address string) (*tls.Conn, error) {
	config, err := c.tls.load()
	if err != nil {
		return nil, &localError{err}
	}
	if config.ServerName == "" {
		if config.ServerName, _, err = net.SplitHostPort(address); err != nil {
			return nil, err
		}
	}
	secured := tls.Client(conn, config)
	return secured, secured.HandshakeContext(ctx)
}

// DialerUntil returns a Dialer whose connections end with ctx, whatever waits
// on them.
func (c *Client) DialerUntil(ctx context.Context) *kafka.Dialer {
	d := *c.Dialer
	d.DialFunc = func(dialing context.Context, network, address string) (net.Conn, error) {
		dialing, cancel := context.WithCancel(dialing)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		conn, err := c.dial(dialing, network, address)
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

// A mechanism reads the password for every connection, so that a new one takes
// effect without a restart, and none is kept.
type mechanism struct{ cfg SASLConfig }

const awsMSKIAM = "aws-msk-iam"

// loadMSK finds the credentials where every AWS program does: the environment, a
// web identity (EKS), the container's or the machine's role, ~/.aws. They are
// fetched, and renewed, when a connection is made.
func (c *SASLConfig) loadMSK(ctx context.Context) (sasl.Mechanism, error) {
	aws, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, fmt.Errorf("kafka.sasl.mechanism %s: %w", awsMSKIAM, err)
	}
	region := cmp.Or(c.Region, aws.Region)
	if region == "" {
		return nil, fmt.Errorf("kafka.sasl.region: set it, or the environment variable AWS_REGION, with mechanism %s", awsMSKIAM)
	}
	return &mskMechanism{aws_msk_iam_v2.Mechanism{Signer: signer.NewSigner(), Credentials: aws.Credentials, Region: region}}, nil
}

// An mskMechanism tells failures to get credentials from those of a broker.
type mskMechanism struct{ aws_msk_iam_v2.Mechanism }

// Start begins the authentication of one connection.
func (m *mskMechanism) Start(ctx context.Context) (sasl.StateMachine, []byte, error) {
	session, first, err := m.Mechanism.Start(ctx)
	if err != nil {
		return nil, nil, &localError{fmt.Errorf("kafka.sasl: get AWS's credentials: %w", err)}
	}
	return session, first, nil
}

// A localError is of what a connection needs from here: a broker has no part in it.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

func (c *SASLConfig) mechanism() (sasl.Mechanism, error) {
	if c.Mechanism == "" {
		return nil, nil
	}
	if c.Mechanism == awsMSKIAM {
		return c.loadMSK(context.Background())
	}
	if _, err := c.password(); err != nil {
		return nil, err
	}
	return &mechanism{cfg: *c}, nil
}

// Name returns Kafka's name of the mechanism.
func (m *mechanism) Name() string { return strings.ToUpper(m.cfg.Mechanism) }

// Start begins the authentication of one connection.
func (m *mechanism) Start(ctx context.Context) (sasl.StateMachine, []byte, error) {
	password, err := m.cfg.password()
	if err != nil {
		return nil, nil, &localError{err}
	}
	var one sasl.Mechanism = plain.Mechanism{Username: m.cfg.Username, Password: password}
	switch m.cfg.Mechanism {
	case "scram-sha-256":
		one, err = scram.Mechanism(scram.SHA256, m.cfg.Username, password)
	case "scram-sha-512":
		one, err = scram.Mechanism(scram.SHA512, m.cfg.Username, password)
	}
	if err != nil {
		return nil, nil, err
	}
	return one.Start(ctx)
}

// Close closes the idle connections.
func (c *Client) Close() { c.Transport.CloseIdleConnections() }

// Check reaches a broker, asks it for the topics, and reaches the leaders of
// their partitions. The error names each broker that could not be reached, or
// the topics that are missing, and says what to do. kafka-go's Client reports a
// wrong password as an unknown topic, so nothing else may be asked before.
func (c *Client) Check(ctx context.Context, topics ...string) error {
	var all []error
	for _, broker := range c.Brokers {
		if err := c.reach(ctx, broker); err != nil {
			all = append(all, fmt.Errorf("kafka broker %s: %w", broker, err))
			continue
		}
		return c.checkTopics(ctx, broker, topics)
	}
	return errors.Join(all...)
}

// reach makes one request over a connection of its own.
func (c *Client) reach(ctx context.Context, broker string) error {
	conn, err := c.Dialer.DialContext(ctx, "tcp", broker)
	if err != nil {
		return c.explain(broker, err)
	}
	// Without TLS and SASL on our side, only an answer shows that none is expected.
	err = conn.SetDeadline(time.Now().Add(dialTimeout))
	if err == nil {
		_, err = conn.Brokers()
	}
	_ = conn.Close() // a failure changes nothing
	if err != nil {
		return c.explain(broker, err)
	}
	return nil
}

func (c *Client) checkTopics(ctx context.Context, broker string, topics []string) error {
	meta, err := Retry(ctx, func() (*kafka.MetadataResponse, error) {
		return c.Kafka.Metadata(ctx, &kafka.MetadataRequest{Topics: topics})
	})
	if err != nil {
		return fmt.Errorf("kafka broker %s: read metadata: %w", broker, err)
	}
	var all []error
	reached := map[string]bool{broker: true}
	for _, topic := range topics {
		at := slices.IndexFunc(meta.Topics, func(t kafka.Topic) bool { return t.Name == topic })
		switch {
		case at < 0 || errors.Is(meta.Topics[at].Error, kafka.UnknownTopicOrPartition):
			all = append(all, fmt.Errorf("kafka topic %s does not exist: create it, or correct the configuration, or grant the user Describe (broker %s does not list it): %w", topic, broker, kafka.UnknownTopicOrPartition))
			continue
		case errors.Is(meta.Topics[at].Error, kafka.TopicAuthorizationFailed):
			all = append(all, fmt.Errorf("kafka topic %s: %s may not see it: allow it Describe, and Read or Write (broker %s says so): %w", topic, c.principal, broker, meta.Topics[at].Error))
			continue
		case meta.Topics[at].Error != nil:
			all = append(all, fmt.Errorf("kafka topic %s: %w", topic, meta.Topics[at].Error))
			continue
		}
		for _, p := range meta.Topics[at].Partitions {
			if p.Leader.Host == "" {
				all = append(all, fmt.Errorf("kafka topic %s: partition %d has no leader: a broker is down", topic, p.ID))
				continue
			}
			leader := net.JoinHostPort(p.Leader.Host, strconv.Itoa(p.Leader.Port))
			if reached[leader] {
				continue
			}
			reached[leader] = true
			if err := c.reach(ctx, leader); err != nil {
				all = append(all, fmt.Errorf("kafka broker %s, as broker %s advertises it: %w", leader, broker, err))
			}
		}
	}
	return errors.Join(all...)
}

// explain adds what to do to the errors that people meet most.
func (c *Client) explain(broker string, err error) error {
	if local, ok := errors.AsType[*localError](err); ok {
		return local
	}
	host, _, _ := net.SplitHostPort(broker)
	var advice string
	switch {
	case errors.Is(err, kafka.SASLAuthenticationFailed):
		advice = "it refused the user or the password: check kafka.sasl"
	case errors.Is(err, kafka.UnsupportedSASLMechanism):
		advice = "it does not offer this mechanism: check kafka.sasl.mechanism"
	case is[x509.UnknownAuthorityError](err):
		advice = "its certificate is signed by an authority that is not trusted here: check kafka.tls.ca_file"
	case is[x509.HostnameError](err):
		advice = fmt.Sprintf("its certificate is for another name than %s: use one of its names as the address, or set kafka.tls.server_name", cmp.Or(c.tls.ServerName, host))
	case is[x509.CertificateInvalidError](err):
		advice = "its certificate is not one for a server: renew it on the broker"
		if invalid, _ := errors.AsType[x509.CertificateInvalidError](err); invalid.Reason == x509.Expired {
			advice = "its certificate has expired or is not valid yet: renew it on the broker, and check the clock here"
		}
	case is[tls.RecordHeaderError](err):
		advice = "it does not speak TLS on this port: check the port and kafka.tls.enabled"
	case is[tls.AlertError](err) || strings.Contains(err.Error(), "remote error: tls"):
		advice = "it refused the TLS handshake: check kafka.tls.cert_file, which it may require"
		if end, ok := c.tls.expired(time.Now()); ok {
			advice = fmt.Sprintf("it refused the TLS handshake: kafka.tls.cert_file %s has expired at %s: renew it", c.tls.CertFile, end.UTC().Format(time.RFC3339))
		}
	case is[*net.DNSError](err):
		advice = "its name cannot be resolved: check kafka.brokers"
	case errors.Is(err, syscall.ECONNREFUSED):
		advice = "nothing listens there: check kafka.brokers, and whether the broker runs"
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		advice = "it did not answer in time: check the port, firewalls, and kafka.tls.enabled"
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET):
		advice = "it closed the connection: it may expect kafka.tls or kafka.sasl"
		if c.tls.Enabled {
			advice = "it closed the connection: it may not speak TLS on this port, or expect kafka.tls.cert_file or kafka.sasl"
		}
	default:
		return err
	}
	return fmt.Errorf("%s: %w", advice, err)
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
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
