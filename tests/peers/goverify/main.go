// Command goverify verifies a log folder with golang.org/x/mod alone:
//
//	goverify FOLDER VKEY [FILE...]
//
// The checkpoint's signature by sumdb/note; every hash tile recomputed from the entry
// bundles; the root, and inclusion and consistency at many sizes, by sumdb/tlog. A FILE is a
// tlog-proof whose leaf stands in its extra line, or a checkpoint that somebody kept: the log
// must continue both. Last line OK … or FAIL …; exit 0 or 1.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height, width = 8, 256

func main() {
	if len(os.Args) < 3 {
		fmt.Println("usage: goverify FOLDER VKEY [PROOF...]")
		os.Exit(2)
	}
	tree, err := verify(os.Args[1], os.Args[2], os.Args[3:])
	if err != nil {
		fmt.Println("FAIL", err)
		os.Exit(1)
	}
	fmt.Println("OK", tree.N, tree.Hash)
}

func verify(folder, vkey string, proofs []string) (tlog.Tree, error) {
	var none tlog.Tree
	data, err := os.ReadFile(filepath.Join(folder, "checkpoint"))
	if err != nil {
		return none, err
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return none, err
	}
	tree, err := open(data, verifier)
	if err != nil {
		return none, err
	}
	leaves, err := readEntries(folder, tree.N)
	if err != nil {
		return none, err
	}
	// All stored hashes of the tree, from the entries alone.
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			out[i] = stored[index]
		}
		return out, nil
	})
	for n, leaf := range leaves {
		hashes, err := tlog.StoredHashesForRecordHash(int64(n), leaf, reader)
		if err != nil {
			return none, err
		}
		stored = append(stored, hashes...)
	}
	root, err := tlog.TreeHash(tree.N, reader)
	if err != nil {
		return none, err
	}
	if root != tree.Hash {
		return none, fmt.Errorf("the entries do not lead to the signed root")
	}
	if err := checkTiles(folder, tree.N, reader); err != nil {
		return none, err
	}
	if err := checkProofs(folder, tree, leaves); err != nil {
		return none, err
	}
	for _, path := range proofs {
		if err := checkFile(path, verifier, tree, reader); err != nil {
			return none, fmt.Errorf("%s: %v", path, err)
		}
	}
	return tree, nil
}

// open returns the tree of a signed checkpoint: origin, size, root, each on its line.
func open(data []byte, verifier note.Verifier) (tlog.Tree, error) {
	var tree tlog.Tree
	opened, err := note.Open(data, note.VerifierList(verifier))
	if err != nil {
		return tree, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() {
		return tree, fmt.Errorf("not a checkpoint of %s", verifier.Name())
	}
	if tree.N, err = strconv.ParseInt(lines[1], 10, 64); err != nil {
		return tree, err
	}
	tree.Hash, err = tlog.ParseHash(lines[2])
	return tree, err
}

// path spells a tile as tlog-tiles does; tlog.Tile spells it with the height in front.
func path(tile tlog.Tile) string {
	parts := strings.Split(tile.Path(), "/") // tile/8/<level>/<n>...
	level := parts[2]
	if level == "data" {
		level = "entries"
	}
	return filepath.Join("tile", level, filepath.Join(parts[3:]...))
}

func readEntries(folder string, size int64) ([]tlog.Hash, error) {
	var leaves []tlog.Hash
	for int64(len(leaves)) < size {
		n := int64(len(leaves)) / width
		w := size - n*width
		if w > width {
			w = width
		}
		name := path(tlog.Tile{H: height, L: -1, N: n, W: int(w)})
		data, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			return nil, err
		}
		for i := int64(0); i < w; i++ {
			if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
				return nil, fmt.Errorf("%s is cut short", name)
			}
			end := 2 + int(binary.BigEndian.Uint16(data))
			leaves = append(leaves, tlog.RecordHash(data[2:end]))
			data = data[end:]
		}
		if len(data) != 0 {
			return nil, fmt.Errorf("%s is too long", name)
		}
	}
	return leaves, nil
}

func checkTiles(folder string, size int64, reader tlog.HashReader) error {
	tiles := tlog.NewTiles(height, 0, size)
	for i, tile := range tiles {
		if i+1 < len(tiles) && tiles[i+1].L == tile.L && tiles[i+1].N == tile.N {
			continue // narrower than the one that a reader of this size needs
		}
		want, err := tlog.ReadTileData(tile, reader)
		if err != nil {
			return err
		}
		got, err := os.ReadFile(filepath.Join(folder, path(tile)))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s does not hold what the entries lead to", path(tile))
		}
	}
	return nil
}

type files struct{ folder string }

func (f files) Height() int { return height }
func (f files) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var out [][]byte
	for _, tile := range tiles {
		data, err := os.ReadFile(filepath.Join(f.folder, path(tile)))
		if err != nil {
			return nil, err
		}
		out = append(out, data)
	}
	return out, nil
}
func (f files) SaveTiles([]tlog.Tile, [][]byte) {}

// checkProofs makes proofs from the tiles on disk, as a reader of the log would.
func checkProofs(folder string, tree tlog.Tree, leaves []tlog.Hash) error {
	reader := tlog.TileHashReader(tree, files{folder})
	step := tree.N/200 + 1
	for n := int64(0); n < tree.N; n += step {
		proof, err := tlog.ProveRecord(tree.N, n, reader)
		if err != nil {
			return err
		}
		if err := tlog.CheckRecord(proof, tree.N, tree.Hash, n, leaves[n]); err != nil {
			return fmt.Errorf("leaf %d: %v", n, err)
		}
		old, err := tlog.TreeHash(n+1, reader)
		if err != nil {
			return err
		}
		grown, err := tlog.ProveTree(tree.N, n+1, reader)
		if err != nil {
			return err
		}
		if err := tlog.CheckTree(grown, tree.N, tree.Hash, n+1, old); err != nil {
			return fmt.Errorf("size %d: %v", n+1, err)
		}
	}
	return nil
}

// checkFile checks a receipt or a kept checkpoint, and that this log continues its tree.
func checkFile(name string, verifier note.Verifier, now tlog.Tree, reader tlog.HashReader) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	signed := data
	if bytes.HasPrefix(data, []byte("c2sp.org/tlog-proof@v1\n")) {
		_, after, _ := strings.Cut(string(data), "\n\n")
		signed = []byte(after)
	}
	then, err := open(signed, verifier)
	if err != nil {
		return err
	}
	if len(signed) != len(data) {
		if err := checkReceipt(string(data), then); err != nil {
			return err
		}
	}
	if then.N > now.N {
		return fmt.Errorf("it has %d entries, this log only %d", then.N, now.N)
	}
	grown, err := tlog.ProveTree(now.N, then.N, reader)
	if err != nil {
		return err
	}
	return tlog.CheckTree(grown, now.N, now.Hash, then.N, then.Hash)
}

func checkReceipt(text string, tree tlog.Tree) error {
	head, _, _ := strings.Cut(text, "\n\n")
	lines := strings.Split(head, "\n")
	if len(lines) < 3 {
		return fmt.Errorf("not a tlog-proof")
	}
	leaf, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[1], "extra "))
	if err != nil {
		return err
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[2], "index "), 10, 64)
	if err != nil {
		return err
	}
	var proof tlog.RecordProof
	for _, line := range lines[3:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return err
		}
		proof = append(proof, hash)
	}
	return tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(leaf))
}
