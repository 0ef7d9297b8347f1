package model

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/oodmon/oodmon/internal/atomicfile"
)

// A store is what a registry needs of the place where it is kept. Names are
// slash-separated.
type store interface {
	// get returns fs.ErrNotExist for a name that was never put.
	get(ctx context.Context, name string) ([]byte, error)
	// put replaces the whole content at once: a reader sees the old or the new.
	put(ctx context.Context, name string, content []byte) error
	// list returns the names under a folder.
	list(ctx context.Context, folder string) ([]string, error)
	// lock keeps others out until release is called or the process ends. It
	// returns ErrLocked, with who holds it, and does not wait.
	lock(ctx context.Context) (release func() error, err error)
}

// A folder is a store in a directory.
type folder string

func (f folder) path(name string) string { return filepath.Join(string(f), filepath.FromSlash(name)) }

func (f folder) get(_ context.Context, name string) ([]byte, error) { return os.ReadFile(f.path(name)) }

func (f folder) put(_ context.Context, name string, content []byte) error {
	path := f.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, content, 0o644)
}

func (f folder) list(_ context.Context, under string) ([]string, error) {
	entries, err := os.ReadDir(f.path(under))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// lock uses flock, so that a process that died holds nothing. The file keeps
// who took it last, for the error of the next.
func (f folder) lock(context.Context) (release func() error, err error) {
	if err := os.MkdirAll(string(f), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(f.path(lockName), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(file.Name()) // only for the message
		_ = file.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w by %s", ErrLocked, holder)
		}
		return nil, err
	}
	host, _ := os.Hostname() // only for the message
	holder := "process " + strconv.Itoa(os.Getpid()) + " on " + host + " since " + time.Now().UTC().Format(time.RFC3339)
	if err := errors.Join(file.Truncate(0), writeAt(file, holder)); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file.Close, nil
}

func writeAt(file *os.File, text string) error {
	_, err := file.WriteAt([]byte(text), 0)
	return err
}
