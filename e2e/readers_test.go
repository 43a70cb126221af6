package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// gdalRaster writes a raster of 8,192 x 8,192 random pixels as a
// cloud-optimized GeoTIFF, and reads all of it and windows of it.
func gdalRaster(t *testing.T, u *use) {
	const side = 8192
	dir, at := t.TempDir(), "/vsis3/"+u.bucket
	raw := filepath.Join(dir, "raw.dat")
	writeRandom(t, raw, side*side)
	header := fmt.Sprintf("ENVI\nsamples = %d\nlines = %[1]d\nbands = 1\nheader offset = 0\nfile type = ENVI Standard\ndata type = 1\n", side)
	if err := os.WriteFile(filepath.Join(dir, "raw.hdr"), []byte(header+"interleave = bsq\nbyte order = 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	env := u.awsEnvironment("AWS_S3_ENDPOINT="+u.c.endpoint.host(), "AWS_HTTPS=NO", "AWS_VIRTUAL_HOSTING=FALSE", "AWS_REGION="+region,
		"CPL_VSIL_USE_TEMP_FILE_FOR_RANDOM_WRITE=YES")
	run := func(t *testing.T, program string, args ...string) string {
		t.Helper()
		return must(t, env, program, args...)
	}
	u.does(t, "multipart", func(t *testing.T) { // parts of 50 MiB
		run(t, "gdal_translate", "-q", "-of", "COG", "-co", "COMPRESS=NONE", "-co", "OVERVIEWS=NONE", raw, at+"/large.tif")
		run(t, "gdal_translate", "-q", "-of", "ENVI", at+"/large.tif", filepath.Join(dir, "back.dat"))
		must(t, environment(), "cmp", raw, filepath.Join(dir, "back.dat"))
	})
	u.does(t, "round trip", func(t *testing.T) {
		run(t, "gdal_translate", "-q", "-of", "COG", "-srcwin", "0", "0", "1024", "1024", raw, at+"/small.tif")
		window(t, run, raw, at+"/small.tif", dir, 100, 200, 300)
	})

	u.does(t, "ranges", func(t *testing.T) {
		for i := range 3 {
			window(t, run, raw, at+"/large.tif", dir, 1000*i, 7000-i, 500+i)
		}
	})
	u.does(t, "listing", func(t *testing.T) {
		if out := run(t, "gdalmanage", "identify", "-r", at); strings.Count(out, "GTiff") != 2 {
			t.Error(out)
		}
	})
	u.does(t, "delete", func(t *testing.T) {
		run(t, "gdalmanage", "delete", at+"/small.tif")
		if out, err := runTool(env, nil, "gdalinfo", at+"/small.tif"); err == nil {
			t.Errorf("read after its deletion: %s", out)
		}
	})
}

// window compares a square of a raster with the original.
func window(t *testing.T, run func(*testing.T, string, ...string) string, raw, raster, dir string, x, y, side int) {
	t.Helper()
	var files []string
	for i, path := range []string{raw, raster} {
		files = append(files, filepath.Join(dir, fmt.Sprintf("window-%d.dat", i)))
		run(t, "gdal_translate", "-q", "-of", "ENVI", "-srcwin", fmt.Sprint(x), fmt.Sprint(y), fmt.Sprint(side), fmt.Sprint(side), path, files[i])
	}
	must(t, environment(), "cmp", files[0], files[1])
}

// samtoolsReads writes a file of aligned reads of DNA, indexes it, and reads
// regions of it.
func samtoolsReads(t *testing.T, u *use) {
	dir := t.TempDir()
	local, at := filepath.Join(dir, "reads.bam"), "s3+http://"+u.bucket+"/reads.bam"
	sam := filepath.Join(dir, "reads.sam")
	if err := os.WriteFile(sam, newReads(), 0o600); err != nil {
		t.Fatal(err)
	}

	env := u.awsEnvironment("HTS_S3_HOST="+u.c.endpoint.host(), "HTS_S3_ADDRESS_STYLE=path")
	// This version of samtools fails to write to such an endpoint, without a
	// proxy too.
	must(t, env, "samtools", "view", "-b", "-o", local, sam)
	u.does(t, "round trip", func(t *testing.T) {
		if err := newGoSDK(u.c.endpoint).putLarge(u.bucket, "reads.bam", local); err != nil {
			t.Fatal(err)
		}
		want, got := must(t, env, "samtools", "view", local), must(t, env, "samtools", "view", at)
		if got != want || strings.Count(got, "\n") != alignedReads {
			t.Errorf("%d bytes, not %d, or others", len(got), len(want))
		}
		must(t, env, "samtools", "quickcheck", at) // reads the end
	})

	u.does(t, "ranges", func(t *testing.T) {
		must(t, env, "samtools", "index", local)
		must(t, env, "samtools", "index", at, filepath.Join(dir, "far.bai"))
		must(t, environment(), "cmp", local+".bai", filepath.Join(dir, "far.bai"))
		for _, place := range []string{"chr1:1-5000", "chr1:1500000-1501000", "chr1:2999000-3000000"} {
			want := must(t, env, "samtools", "view", local, place)
			got := must(t, env, "samtools", "view", "-X", at, filepath.Join(dir, "far.bai"), place)
			if got != want || want == "" {
				t.Errorf("%s: %d bytes, not %d, or others", place, len(got), len(want))
			}
		}
	})
}

const alignedReads = 60_000

// newReads returns sorted reads with random bases and qualities, as SAM.
func newReads() []byte {
	random := rand.New(rand.NewPCG(3, 3))
	var b strings.Builder
	b.WriteString("@HD\tVN:1.6\tSO:coordinate\n@SQ\tSN:chr1\tLN:4000000\n")
	bases, qualities := make([]byte, 150), make([]byte, 150)
	for i := range alignedReads {
		for j := range bases {
			bases[j], qualities[j] = "ACGT"[random.IntN(4)], byte('!'+random.IntN(60))
		}
		fmt.Fprintf(&b, "read%d\t0\tchr1\t%d\t60\t150M\t*\t0\t0\t%s\t%s\n", i, 1+i*50, bases, qualities)
	}
	return []byte(b.String())
}
