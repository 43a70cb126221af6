package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/maintain/storecheck"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// store tests what the store can do. Without a bucket, it tests the
// credentials only. text is the configuration.
func (c *checker) store(ctx context.Context, s *store, text []byte, bucket string) {
	probe, failed := s.newProbe(bucket, ""), c.failures
	c.run(ctx, checkCredentials, "store "+s.settings.Endpoint+": credentials", probe.List)

	switch {
	case ctx.Err() != nil:
		return
	case bucket == "":
		c.remark("skip", checkCapabilities, "features of the store: give --bucket to test them")
		return
	case c.failures > failed:
		c.remark("skip", checkCapabilities, "features of the store: the bucket %s cannot be listed", bucket)
		return
	}

	c.sweep(ctx, probe)
	defer context.AfterFunc(ctx, func() { c.sayStopping(ctx) })()
	dismiss, err := startCleaner(text, bucket, probe.ID())
	if err != nil {
		c.remark("warn", checkLeftovers, "if this check is killed, its test objects stay until the next one: %v", err)
	} else {
		defer func() {
			if ctx.Err() == nil { // else the store may still be doing what was interrupted
				dismiss()
			}
		}()
	}

	failed = c.failures
	c.run(ctx, checkPut, "store: put, 2 KB of metadata", probe.Put)
	if c.failures == failed {
		c.run(ctx, checkRanges, "store: ranges", probe.Ranges)
		c.capabilities(ctx, probe, s.settings)
	} else {
		c.remark("skip", checkCapabilities, "other features of the store: it does not take an object")
	}
	c.run(context.WithoutCancel(ctx), checkDelete, "store: delete",
		func(ctx context.Context) (string, error) { return "", probe.Clean(ctx) })
}

// sayStopping says why the check does not end at once after a signal.
func (c *checker) sayStopping(ctx context.Context) {
	if signal, ok := errors.AsType[signalError](context.Cause(ctx)); ok {
		fmt.Fprintf(c.stderr, "%s: removing the test objects; a second signal ends at once\n",
			signalName(signal.Signal))
	}
}

// sweep removes what a check or a proxy has left that was killed.
func (c *checker) sweep(ctx context.Context, probe *storecheck.Probe) {
	switch n, err := probe.Sweep(ctx); {
	case ctx.Err() != nil:
	case err != nil:
		c.remark("warn", checkLeftovers, "looking for what an earlier test has left: %v", err)
	case n > 0:
		c.remark("note", checkLeftovers, "removed %d objects and uploads that an earlier test had left", n)
	}
}

// capabilities finds out what the store can do, and compares it with the
// settings.
func (c *checker) capabilities(ctx context.Context, probe *storecheck.Probe, cfg config.Origin) {
	var found capability.Set
	c.run(ctx, checkCapabilities, "store: what it can do", func(ctx context.Context) (_ string, err error) {
		found, err = probe.Capabilities(ctx)
		return "", err
	})
	if ctx.Err() != nil {
		return
	}
	for one := range capability.All {
		c.capability(one, found[one])
	}

	used := fixedCapabilities(cfg).Over(found)
	if isBodyKnown(found, used) {
		c.line(checkBodies, checkTrailer(found, used, cfg), "store: checksum trailers, truncated bodies")
	} else {
		c.remark("skip", checkBodies, "store: checksum trailers, truncated bodies: not found out")
	}
	if found[capability.PartCount] != capability.Unknown {
		c.line(checkPartCounts, checkPartCount(found, used), "store: part counts in ETags")
	} else {
		c.remark("skip", checkPartCounts, "store: part counts in ETags: not found out")
	}

	c.run(ctx, checkMultipart, "store: multipart uploads", func(ctx context.Context) (string, error) {
		return probe.Parts(ctx, used, cfg.UniformParts)
	})
	if ctx.Err() != nil {
		return
	}
	detail, err := storecheck.CompareKeys(found, cfg.Keys)
	if detail != "" {
		detail = ": " + detail
	}
	c.line(checkObjectKeys, err, "store: keys%s", detail)
}

// isBodyKnown reports whether it was found out what the store does with a body
// that is sent as the settings say.
func isBodyKnown(found, used capability.Set) bool {
	if used[capability.Trailer] != capability.No {
		return found[capability.Trailer] != capability.Unknown
	}
	return found[capability.CutBodies] != capability.Unknown
}

// checkTrailer returns an error if uploads would fail, or if a body that was
// cut short would be kept.
func checkTrailer(found, used capability.Set, cfg config.Origin) error {
	switch {
	case used[capability.Trailer] == capability.Yes && found[capability.Trailer] == capability.No:
		return errors.New("the store refuses checksum trailers, so all uploads would fail: " + actions[checkBodies])
	case used[capability.Trailer] != capability.No || found[capability.CutBodies] != capability.No:
		return nil
	case found[capability.Trailer] == capability.Yes:
		return errors.New("the store keeps bodies that are cut short, " +
			"but discards them with a checksum trailer: " + actions[checkBodies])
	case cfg.TruncatedUploads == config.Accept:
		return nil
	default:
		return advised{
			s3api.ErrKeepsTruncated,
			"use a store that discards such bodies, or set origin.truncated_uploads to accept",
		}
	}
}

// checkPartCount returns an error if sizes in listings would be wrong.
func checkPartCount(found, used capability.Set) error {
	if used[capability.PartCount] == capability.Yes && found[capability.PartCount] == capability.No {
		return errors.New("the store's ETags do not have the number of parts, so sizes in listings would be wrong: " +
			actions[checkPartCounts])
	}
	return nil
}
