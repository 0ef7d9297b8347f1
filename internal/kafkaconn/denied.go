package kafkaconn

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/segmentio/kafka-go"
)

// An Access is what a request that was refused was for.
type Access struct {
	Operation string // Read or Write, on Topic
	Topic     string
	Group     string
	// TransactionalID is what the transactional ids begin with.
	TransactionalID string
}

// A deniedError says what is to be allowed to whom.
type deniedError struct {
	advice string
	err    error
}

func (e *deniedError) Error() string { return e.advice + ": " + e.err.Error() }
func (e *deniedError) Unwrap() error { return e.err }

// Denied adds to an error of authorisation who is to be allowed what. Others it returns
// as they are, and so those that say it already.
func (c *Client) Denied(err error, a Access) error {
	const read, write = "Read", "Write"
	group, topic := cmp.Or(a.Group, "GROUP"), cmp.Or(a.Topic, "TOPIC")
	var may, more string
	var options []string
	switch {
	case err == nil || is[*deniedError](err):
		return err
	case errors.Is(err, kafka.TopicAuthorizationFailed):
		operation := cmp.Or(a.Operation, read)
		may, options = fmt.Sprintf("%s topic %s", strings.ToLower(operation), topic), []string{"--operation", operation, "--topic", topic}
	case errors.Is(err, kafka.GroupAuthorizationFailed):
		may, options = "use group "+group, []string{"--operation", read, "--group", group}
	case errors.Is(err, kafka.TransactionalIDAuthorizationFailed):
		id := cmp.Or(a.TransactionalID, "ID")
		may = "use transactional ids that begin with " + id
		options = []string{"--operation", write, "--operation", "Describe", "--transactional-id", id, "--resource-pattern-type", "prefixed"}
	case errors.Is(err, kafka.ClusterAuthorizationFailed):
		may, options = "get a producer id, for want of a topic that it may write", []string{"--operation", write, "--topic", topic}
		more = "; before Kafka 2.8 also --operation IdempotentWrite --cluster"
	default:
		return err
	}
	may += " on the cluster of " + strings.Join(c.Brokers, ", ") // whose brokers all have the same lists
	if c.iam {
		return &deniedError{fmt.Sprintf("%s may not %s: allow it in the IAM policy", c.principal, may), err}
	}
	return &deniedError{fmt.Sprintf("%s may not %s: allow it, as by kafka-acls --add --allow-principal '%s' %s%s", c.principal, may, c.principal, strings.Join(options, " "), more), err}
}

// principalOf names the user as access lists do, where that is known here.
func principalOf(cfg *Config) string {
	switch {
	case cfg.SASL.Mechanism == awsMSKIAM:
		return "the AWS identity"
	case cfg.SASL.Mechanism != "":
		return "User:" + cfg.SASL.Username
	case cfg.TLS.CertFile != "":
		return "User:SUBJECT-OF-kafka.tls.cert_file"
	}
	return "User:ANONYMOUS"
}
