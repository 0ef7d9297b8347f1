package webhook

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is not taken is an error that repeats neither the address, which may hold a
// token, nor what the receiver says, and a redirect is not followed.
func TestPost(t *testing.T) {
	redirected := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("a redirect was followed: %s %s, Referer %q", r.Method, r.URL, r.Referer())
	}))
	defer redirected.Close()
	code := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s of %s", r.Method, r.Header.Get("Content-Type"))
		}
		w.Header().Set("Location", redirected.URL)
		w.WriteHeader(code)
		_, _ = w.Write([]byte("cannot POST " + r.URL.String()))
	}))
	defer server.Close()
	address := server.URL + "/hook/secret?token=secret"
	host := strings.TrimPrefix(server.URL, "http://")
	for answer, want := range map[int]string{
		http.StatusOK:         "",
		http.StatusAccepted:   "",
		http.StatusFound:      "post to " + host + ": 302 Found: redirects are not followed; name the address that takes it",
		http.StatusBadGateway: "post to " + host + ": 502 Bad Gateway",
	} {
		code = answer
		err, got := Post(t.Context(), address, []byte("{}")), ""
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("answer %d: %q, want %q", answer, got, want)
		}
	}
	server.Close()
	for _, address := range []string{address, "http://host/secret\x7f"} {
		if err := Post(t.Context(), address, nil); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v; the address must not be in it", err)
		}
	}
}

func TestAddress(t *testing.T) {
	file := filepath.Join(t.TempDir(), "url")
	if got, err := Address("https://host/itself", ""); got != "https://host/itself" || err != nil {
		t.Errorf("without a file: %q, %v", got, err)
	}
	if _, err := Address("", file); err == nil {
		t.Error("a file that is not there was read")
	}
	for text, want := range map[string]string{
		"https://host/token\n": "https://host/token",
		"http://host":          "http://host",
		"ftp://host/secret":    "",
		"secret":               "",
		"":                     "",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Address("", file)
		if got != want || (err == nil) != (want != "") || err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
}
