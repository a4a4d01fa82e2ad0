// Command gowitness verifies a witness's cosignature (tlog-cosignature, type 04) with
// golang.org/x/mod's signed notes and Go's crypto/ed25519:
//
//	gowitness LOG-VKEY WITNESS-VKEY FILE
//
// FILE is a checkpoint. note.Open must find both lines good: the log's own (type 01, by x/mod
// itself) and the witness's (by the Verifier here). Last line OK with the time, or FAIL …;
// exit 0 or 1.
package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

type witness struct {
	name string
	hash uint32
	key  ed25519.PublicKey
	time uint64
}

func (w *witness) Name() string    { return w.name }
func (w *witness) KeyHash() uint32 { return w.hash }

// Verify is asked by note.Open for the line of this name and key hash.
func (w *witness) Verify(text, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	w.time = binary.BigEndian.Uint64(sig[:8])
	message := fmt.Sprintf("cosignature/v1\ntime %d\n%s", w.time, text)
	return ed25519.Verify(w.key, []byte(message), sig[8:])
}

func parse(vkey string) (*witness, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, fmt.Errorf("not a vkey")
	}
	body, err := base64.StdEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(body) != 1+ed25519.PublicKeySize || body[0] != 4 {
		return nil, fmt.Errorf("not a vkey of type 04")
	}
	sum := sha256.Sum256(append([]byte(parts[0]+"\n"), body...))
	if hex.EncodeToString(sum[:4]) != parts[1] {
		return nil, fmt.Errorf("the key id is not that of the key")
	}
	return &witness{name: parts[0], hash: binary.BigEndian.Uint32(sum[:4]), key: body[1:]}, nil
}

func check(logKey, witnessKey, name string) (uint64, error) {
	log, err := note.NewVerifier(logKey)
	if err != nil {
		return 0, err
	}
	cosigner, err := parse(witnessKey)
	if err != nil {
		return 0, err
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	opened, err := note.Open(data, note.VerifierList(log, cosigner))
	if err != nil {
		return 0, err
	}
	if len(opened.Sigs) != 2 {
		return 0, fmt.Errorf("%d of two signatures are there", len(opened.Sigs))
	}
	return cosigner.time, nil
}

func main() {
	if len(os.Args) != 4 {
		fmt.Println("usage: gowitness LOG-VKEY WITNESS-VKEY FILE")
		os.Exit(2)
	}
	time, err := check(os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		fmt.Println("FAIL", err)
		os.Exit(1)
	}
	fmt.Println("OK", time)
}
