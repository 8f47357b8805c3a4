package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"testing"
	"testing/fstest"
	"time"
)

func TestAnArchiveNamesItsImageAndEveryDigestHolds(t *testing.T) {
	names := []string{"localhost/it:dev", "localhost/other:1"}
	archive, err := ociArchive(names, imageConfig{Entrypoint: []string{"/it"}}, fstest.MapFS{"it": {Data: []byte("program"), Mode: 0o755}})
	if err != nil {
		t.Fatal(err)
	}
	files := untar(t, archive)
	type reference struct {
		Digest      string
		Size        int
		Annotations map[string]string
	}
	var index struct{ Manifests []reference }
	parse(t, files["index.json"], &index)
	var found []string
	for _, manifest := range index.Manifests {
		found = append(found, manifest.Annotations["io.containerd.image.name"])
		if manifest.Digest != index.Manifests[0].Digest {
			t.Errorf("another image: %v", manifest)
		}
	}
	if !slices.Equal(found, names) {
		t.Errorf("names %q", found)
	}
	blob := func(r reference) []byte {
		content := files["blobs/sha256/"+r.Digest[len("sha256:"):]]
		if r.Digest != fmt.Sprintf("sha256:%x", sha256.Sum256(content)) || r.Size != len(content) {
			t.Errorf("%+v describes no blob", r)
		}
		return content
	}
	var manifest struct {
		Config reference
		Layers []reference
	}
	parse(t, blob(index.Manifests[0]), &manifest)
	var config struct {
		Config struct{ Entrypoint []string }
		Rootfs struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	parse(t, blob(manifest.Config), &config)
	if config.Config.Entrypoint[0] != "/it" || config.Rootfs.DiffIDs[0] != manifest.Layers[0].Digest {
		t.Errorf("config %+v", config)
	}
	if layer := untar(t, blob(manifest.Layers[0])); string(layer["it"]) != "program" {
		t.Errorf("layer %q", layer)
	}
}

func TestTheSameFilesGiveTheSameBytesWhateverTheirTimes(t *testing.T) {
	var archives [][]byte
	for _, year := range []int{2001, 2002} {
		archive, err := ociArchive([]string{"it"}, imageConfig{Entrypoint: []string{"/it"}}, fstest.MapFS{
			"it":  {Data: []byte("program"), Mode: 0o755, ModTime: time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)},
			"etc": {Mode: fs.ModeDir | 0o755},
		})
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, archive)
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("they differ")
	}
}

func untar(t *testing.T, archive []byte) map[string][]byte {
	files := map[string][]byte{}
	for reader := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := reader.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(reader); err != nil {
			t.Fatal(err)
		}
	}
}

func parse(t *testing.T, content []byte, into any) {
	if err := json.Unmarshal(content, into); err != nil {
		t.Fatalf("%q: %v", content, err)
	}
}
