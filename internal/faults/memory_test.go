package faults

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Messages of the largest size, with as many records as one may have, wait in
// every partition; the process stays under the memory of a container whose nine
// tenths memory_limit is.
func TestMemoryLimit(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector's own memory would be measured")
	}
	eachDelivery(t, memoryLimit)
}

func memoryLimit(t *testing.T, d *deployment) {
	const limit = 768 << 20
	const many = 32 // more than there is memory for at a time
	if _, err := d.Admin().CreatePartitions(t.Context(), many-partitions, d.in); err != nil {
		t.Fatal(err)
	}
	largest := "16777216"
	if _, err := d.Admin().AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &largest}}, d.in); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(d.config)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), "max_message_bytes: 1000000", "max_message_bytes: 16777216", 1)
	write(t, d.config, []byte(changed+fmt.Sprintf("memory_limit: %d\n", limit)))

	random := rand.New(rand.NewPCG(1, 1))
	var message strings.Builder
	rows := 0
	for message.WriteString("["); rows < 1<<16 && message.Len() < 15<<20; rows++ {
		if rows > 0 {
			message.WriteString(",")
		}
		message.WriteString(`{"embedding":[`)
		for i := range dim {
			if i > 0 {
				message.WriteString(",")
			}
			message.WriteString(strconv.FormatFloat(random.NormFloat64(), 'g', 9, 32))
		}
		message.WriteString("]}")
	}
	message.WriteString("]")
	for p := range int32(many) {
		d.Produce(&kgo.Record{Topic: d.in, Partition: p, Value: []byte(message.String())})
	}
	m := d.start()
	want := float64(rows * many)
	kafkatest.Eventually(t, patience, func() error {
		if got := d.metric("oodmon_records_total"); got != want {
			return fmt.Errorf("%v of %v records", got, want)
		}
		return nil
	})
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.Process.Pid))
	if err != nil {
		t.Skipf("no peak memory here: %v", err)
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d messages of %d MB with %d records each: a peak of %d MB, with a limit of %d", many, message.Len()>>20, rows, kib>>10, limit>>20)
	if container := limit / 9 * 10; kib<<10 > container { // as docs/operation.md has it
		t.Errorf("a peak of %d MB, and the container has %d", kib>>10, container>>20)
	}
}

// raceDetector is whether this program was built with it.
var raceDetector bool
