package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"testing"
	"testing/fstest"
	"time"
)

func TestAnArchiveNamesItsImageAndEveryDigestHolds(t *testing.T) {
	names := []string{"localhost/it:dev", "localhost/other:1"}
	archive, err := ociArchive(names, imageConfig{Entrypoint: []string{"/it"}}, []variant{{"amd64", onlyProgram("program")}})
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

func TestAnImageForTwoArchitecturesHasAProgramForEach(t *testing.T) {
	variants := []variant{{"amd64", onlyProgram("one")}, {"arm64", onlyProgram("other")}}
	archive, err := ociArchive([]string{"it:1"}, imageConfig{Entrypoint: []string{"/it"}}, variants)
	if err != nil {
		t.Fatal(err)
	}
	files := untar(t, archive)
	type reference struct {
		MediaType, Digest string
		Platform          struct{ Architecture, Os string }
	}
	blob := func(r reference) []byte { return files["blobs/sha256/"+r.Digest[len("sha256:"):]] }
	var layout, image struct{ Manifests []reference }
	parse(t, files["index.json"], &layout)
	if len(layout.Manifests) != 1 || layout.Manifests[0].MediaType != "application/vnd.oci.image.index.v1+json" {
		t.Fatalf("a client that pulls the name gets %+v", layout)
	}
	parse(t, blob(layout.Manifests[0]), &image)
	found := map[string]string{}
	for _, one := range image.Manifests {
		var manifest struct {
			Config reference
			Layers []reference
		}
		parse(t, blob(one), &manifest)
		var config struct{ Architecture, Os string }
		parse(t, blob(manifest.Config), &config)
		if config != one.Platform {
			t.Errorf("%+v is named as %+v", config, one.Platform)
		}
		found[config.Architecture] = string(untar(t, blob(manifest.Layers[0]))["it"])
	}
	if !maps.Equal(found, map[string]string{"amd64": "one", "arm64": "other"}) {
		t.Errorf("%v", found)
	}
	if folder := rootFor("target/images/operator", "else"); folder != "target/images-else/operator" {
		t.Errorf("staged in %s", folder)
	}
}

func onlyProgram(content string) fs.FS {
	return fstest.MapFS{"it": {Data: []byte(content), Mode: 0o755}}
}

func TestTheSameFilesGiveTheSameBytesWhateverTheirTimes(t *testing.T) {
	var archives [][]byte
	for _, year := range []int{2001, 2002} {
		archive, err := ociArchive([]string{"it"}, imageConfig{Entrypoint: []string{"/it"}}, []variant{{"amd64", fstest.MapFS{
			"it":  {Data: []byte("program"), Mode: 0o755, ModTime: time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)},
			"etc": {Mode: fs.ModeDir | 0o755},
		}}})
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
