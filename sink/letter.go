package sink

import (
	"strconv"
	"strings"
	"time"
)

// A Letter is a record, or a row of one, that could not be scored, or as many
// records as it tells.
type Letter struct {
	Topic     string
	Partition int32
	Offset    int64
	Row       int32 // -1: the whole message
	More      int64 // how many offsets after Offset it stands for too
	Time      time.Time
	Key       []byte
	Value     []byte
	Headers   []Header
	Reason    string // a bounded set of words: it is a metric's label
	Err       error
}

// A letter is a Letter on its way, and how much is left of it.
type letter struct {
	*Letter
	keep    int  // bytes of the value
	bare    bool // without key and headers
	omitted bool // the letter before it has the same message
}

// message returns the original message with headers that say where it came
// from and why it is here.
func (l *letter) message() message {
	m := message{letter: l}
	add := func(key, value string) { m.headers = append(m.headers, Header{Key: key, Value: []byte(value)}) }
	if !l.bare {
		m.key = l.Key
		m.headers = append(make([]Header, 0, len(l.Headers)+9), l.Headers...)
	}
	if l.Value != nil && !l.omitted {
		m.value = l.Value[:l.keep]
	}
	add("oodmon-reason", l.Reason)
	add("oodmon-error", shorten(l.Err.Error()))
	add("oodmon-topic", l.Topic)
	add("oodmon-partition", strconv.Itoa(int(l.Partition)))
	add("oodmon-offset", strconv.FormatInt(l.Offset, 10))
	if l.More > 0 {
		add("oodmon-last-offset", strconv.FormatInt(l.Offset+l.More, 10))
	}
	add("oodmon-row", strconv.Itoa(int(l.Row)))
	add("oodmon-timestamp", l.Time.UTC().Format(time.RFC3339Nano))
	switch {
	case l.omitted:
		add("oodmon-omitted", "value: it is in the first dead letter of this offset")
	case l.bare:
		add("oodmon-truncated", "all of "+strconv.Itoa(len(l.Key)+len(l.Value))+" bytes, and the headers")
	case l.keep < len(l.Value):
		add("oodmon-truncated", strconv.Itoa(len(l.Value)))
	}
	return m
}

// maxError bounds the text of an error, which may quote what was found: a letter
// that no topic takes would block its partition.
const maxError = 2 << 10

func shorten(text string) string {
	if len(text) <= maxError {
		return text
	}
	return strings.ToValidUTF8(text[:maxError], "") + " ..."
}

// cut makes the letter about half as large: first its value, then the rest.
func (l *letter) cut() bool {
	switch {
	case l.keep > 0 && !l.omitted:
		l.keep /= 2
	case !l.bare:
		l.bare = true
	default:
		return false
	}
	return true
}
