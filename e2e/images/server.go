// A workload that shows what it sees: GET / greets, and GET /tree lists every file
// of its root, one line each. The fields are as in server.py.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
)

// Directories on which something is mounted, as the kernel escapes them.
func mounts() map[string]bool {
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		log.Fatal(err)
	}
	found := map[string]bool{}
	for _, line := range strings.Split(strings.TrimSpace(string(content)), "\n") {
		if path := strings.Fields(line)[4]; path != "/" {
			found[path] = true
		}
	}
	return found
}

func describe(path string) (string, error) {
	var stat syscall.Stat_t
	if err := syscall.Lstat(path, &stat); err != nil {
		return "", err
	}
	kind, content, attributes := "other", "-", "-"
	switch stat.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		kind = "directory"
	case syscall.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		kind, content = "link", hex.EncodeToString([]byte(target))
	case syscall.S_IFREG:
		file, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer file.Close()
		digest := sha256.New()
		if _, err := io.Copy(digest, file); err != nil {
			return "", err
		}
		kind, content = "file", hex.EncodeToString(digest.Sum(nil))
	}
	if kind != "link" {
		found, err := extendedAttributes(path)
		if err != nil {
			return "", err
		}
		if len(found) > 0 {
			attributes = strings.Join(found, ",")
		}
	}
	return fmt.Sprintf("%x %s %o %d %d %s %s", path, kind, stat.Mode&0o7777, stat.Uid, stat.Gid,
		content, attributes), nil
}

// Name and value of every extended attribute, sorted by name.
func extendedAttributes(path string) ([]string, error) {
	names := make([]byte, 1<<16)
	length, err := syscall.Listxattr(path, names)
	if err != nil {
		return nil, fmt.Errorf("list the attributes of %q: %w", path, err)
	}
	var found []string
	for _, name := range strings.Split(string(names[:length]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		length, err := syscall.Getxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("read the attribute %s of %q: %w", name, path, err)
		}
		found = append(found, fmt.Sprintf("%x=%x", name, value[:length]))
	}
	sort.Strings(found)
	return found, nil
}

func tree(answer http.ResponseWriter, _ *http.Request) {
	mounted := mounts()
	var out bytes.Buffer
	walk := func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if mounted[path] {
			fmt.Fprintf(&out, "%x mount\n", path)
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		line, err := describe(path)
		fmt.Fprintln(&out, line)
		return err
	}
	if err := filepath.WalkDir("/", walk); err != nil {
		http.Error(answer, err.Error(), http.StatusInternalServerError)
		return
	}
	buffered := bufio.NewWriter(answer)
	buffered.Write(out.Bytes())
	buffered.Flush()
}

func main() {
	http.HandleFunc("/", func(answer http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(answer, "a measured guest")
	})
	http.HandleFunc("/tree", tree)
	log.Fatal(http.ListenAndServe(":8080", nil))
}
