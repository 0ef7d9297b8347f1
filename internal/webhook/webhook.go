// Package webhook posts JSON to addresses that a configuration names. They may hold a
// token: no error repeats one, nor what a receiver says, which may repeat it.
package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// Timeout bounds a post.
const Timeout = 10 * time.Second

// client follows no redirect: Go would make a GET without a body of a POST, take its
// answer for that of the POST, and tell the other host the whole address.
var client = &http.Client{
	Timeout:       Timeout,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Check says what is wrong with an address.
func Check(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return errors.New("want http:// or https://, a host, and a path")
	}
	return nil
}

// Address returns where to post: address, or what the file holds where one is named. It
// is read anew each time, since a token in it may be renewed.
func Address(address, file string) (string, error) {
	if file == "" {
		return address, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	address = strings.TrimSpace(string(text))
	if err := Check(address); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return address, nil
}

// Post posts JSON, and returns nil where the answer is 200 to 299.
func Post(ctx context.Context, address string, body []byte) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return errors.New("the address is not valid")
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "oodmon")
	answer, err := client.Do(request)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok { // it repeats the address
			err = wrapped.Err
		}
		return fmt.Errorf("post to %s: %w", request.URL.Host, err)
	}
	defer answer.Body.Close()
	_, _ = io.CopyN(io.Discard, answer.Body, 64<<10) // so that the connection is used again
	switch answer.StatusCode / 100 {
	case 2:
		return nil
	case 3:
		return fmt.Errorf("post to %s: %s: redirects are not followed; name the address that takes it", request.URL.Host, answer.Status)
	}
	return fmt.Errorf("post to %s: %s", request.URL.Host, answer.Status)
}
