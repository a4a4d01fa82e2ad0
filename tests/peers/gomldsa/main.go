// Command gomldsa verifies the post-quantum signature of checkpoints with Go's standard
// library alone (crypto/mldsa, Go 1.27 or newer):
//
//	gomldsa VKEY FILE...
//
// A FILE is a checkpoint or a tlog-proof, whose checkpoint it reads. The line of VKEY (signed
// note, type 06) must be there and verify over the message of tlog-cosignature. Last line OK
// with size, root and time of the last file, or FAIL …; exit 0 or 1.
package main

import (
	"bytes"
	"crypto/mldsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
)

const algorithm = 6

func main() {
	if len(os.Args) < 3 {
		fmt.Println("usage: gomldsa VKEY FILE...")
		os.Exit(2)
	}
	last := ""
	for _, name := range os.Args[2:] {
		words, err := check(os.Args[1], name)
		if err != nil {
			fmt.Println("FAIL", name, err)
			os.Exit(1)
		}
		last = words
	}
	fmt.Println("OK", last)
}

type key struct {
	name   string
	id     []byte
	public *mldsa.PublicKey
}

func parseKey(vkey string) (key, error) {
	var none key
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return none, fmt.Errorf("not a vkey")
	}
	body, err := base64.StdEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(body) == 0 || body[0] != algorithm {
		return none, fmt.Errorf("not a vkey of type 06")
	}
	sum := sha256.Sum256(append([]byte(parts[0]+"\n"), body...))
	if hex.EncodeToString(sum[:4]) != parts[1] {
		return none, fmt.Errorf("the key id is not that of the key")
	}
	public, err := mldsa.NewPublicKey(mldsa.MLDSA44(), body[1:])
	return key{parts[0], sum[:4], public}, err
}

func check(vkey, name string) (string, error) {
	trusted, err := parseKey(vkey)
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	note := string(data)
	if strings.HasPrefix(note, "c2sp.org/tlog-proof@v1\n") {
		_, note, _ = strings.Cut(note, "\n\n")
	}
	cut := strings.LastIndex(note, "\n\n")
	if cut < 0 || !strings.HasSuffix(note, "\n") {
		return "", fmt.Errorf("not a note")
	}
	lines := strings.Split(note[:cut+1], "\n")
	if len(lines) != 4 {
		return "", fmt.Errorf("not a checkpoint")
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil || strconv.FormatUint(size, 10) != lines[1] {
		return "", fmt.Errorf("not a size")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != sha256.Size {
		return "", fmt.Errorf("not a root")
	}
	for _, line := range strings.Split(note[cut+2:len(note)-1], "\n") {
		parts := strings.Split(line, " ")
		if len(parts) != 3 || parts[0] != "—" {
			return "", fmt.Errorf("not a signature line")
		}
		raw, err := base64.StdEncoding.Strict().DecodeString(parts[2])
		if err != nil || len(raw) < 5 {
			return "", fmt.Errorf("not a signature")
		}
		if parts[1] != trusted.name || !bytes.Equal(raw[:4], trusted.id) {
			continue
		}
		if len(raw) < 12 {
			return "", fmt.Errorf("the signature has no time")
		}
		time := binary.BigEndian.Uint64(raw[4:12])
		message := message(trusted.name, time, lines[0], size, root)
		if err := mldsa.Verify(trusted.public, message, raw[12:], nil); err != nil {
			return "", err
		}
		return fmt.Sprintf("%d %s %d", size, lines[2], time), nil
	}
	return "", fmt.Errorf("no signature by this key")
}

// message is what a type 06 key signs about a whole tree: a subtree from 0 to its size.
func message(cosigner string, time uint64, origin string, size uint64, root []byte) []byte {
	out := []byte("subtree/v1\n\x00")
	out = append(out, byte(len(cosigner)))
	out = append(out, cosigner...)
	out = binary.BigEndian.AppendUint64(out, time)
	out = append(out, byte(len(origin)))
	out = append(out, origin...)
	out = binary.BigEndian.AppendUint64(out, 0)
	out = binary.BigEndian.AppendUint64(out, size)
	return append(out, root...)
}
