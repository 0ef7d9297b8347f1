package kafkaconn

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/sasl"
)

// The first message to a broker of MSK is signed with the credentials of the
// environment, and does not hold the secret.
func TestMSKIAM(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "top-secret")
	t.Setenv("AWS_SESSION_TOKEN", "")
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	cfg := Config{Brokers: []string{"b-1.example:9098"}, TLS: TLSConfig{Enabled: true}, SASL: SASLConfig{Mechanism: "aws-msk-iam"}}
	const want = "kafka.sasl.region: set it, or the environment variable AWS_REGION, with mechanism aws-msk-iam"
	if _, err := New(cfg); err == nil || err.Error() != want {
		t.Errorf("without a region: %v, want %s", err, want)
	}
	cfg.SASL.Region = "eu-central-1"
	conn, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if name := conn.Dialer.SASLMechanism.Name(); name != "AWS_MSK_IAM" {
		t.Errorf("mechanism %s", name)
	}
	_, first, err := conn.Dialer.SASLMechanism.Start(sasl.WithMetadata(t.Context(), &sasl.Metadata{Host: "b-1.example", Port: 9098}))
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]string
	if err := json.Unmarshal(first, &fields); err != nil {
		t.Fatal(err)
	}
	if fields["host"] != "b-1.example" || fields["action"] != "kafka-cluster:Connect" || fields["x-amz-signature"] == "" ||
		!strings.HasPrefix(fields["x-amz-credential"], "AKIAEXAMPLE/") || !strings.HasSuffix(fields["x-amz-credential"], "/eu-central-1/kafka-cluster/aws4_request") {
		t.Errorf("first message %s", first)
	}
	if strings.Contains(string(first), "top-secret") {
		t.Error("the secret is sent")
	}
	cfg.TLS.Enabled, cfg.SASL.Username = false, "u"
	const refused = "kafka.sasl: mechanism aws-msk-iam takes AWS's credentials, no username or password\nkafka.sasl: mechanism aws-msk-iam needs kafka.tls.enabled"
	if err := cfg.Validate(); err == nil || err.Error() != refused {
		t.Errorf("%v, want %s", err, refused)
	}
}

// Where there are no credentials, or nobody answers who would give some, it is not the
// broker that is to blame.
func TestMSKIAMWithoutCredentials(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	over := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-over }))
	defer silent.Close()
	defer close(over) // the SDK's call outlives the context
	for _, uri := range []string{"", silent.URL} {
		t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri)
		conn, err := New(Config{Brokers: []string{"b-1.example:9098"}, TLS: TLSConfig{Enabled: true}, SASL: SASLConfig{Mechanism: "aws-msk-iam", Region: "eu-central-1"}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, _, err = conn.Dialer.SASLMechanism.Start(sasl.WithMetadata(ctx, &sasl.Metadata{Host: "b-1.example", Port: 9098}))
		if err == nil {
			t.Fatalf("credentials from %q", uri)
		}
		if told := conn.explain("b-1.example:9098", err).Error(); !strings.HasPrefix(told, "kafka.sasl: get AWS's credentials: ") {
			t.Errorf("from %q: told %s", uri, told)
		}
		if uri != "" && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nobody answers: %v", err)
		}
	}
}
