package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// prepareEarlier prepares the keys in also_known_as, named NAME/1 and so on.
// They open the objects that are under them.
func (b *backend) prepareEarlier(ctx context.Context, c *keyChange, k config.Key) (keys []keyring.Key, err error) {
	for i, id := range k.AlsoKnownAs {
		earlier := earlierKey(k, i)
		key := keyring.Key{
			Name: earlier.Name, Provider: string(k.Provider), Successor: k.Name,
			Timeout: kms.AttemptsPerCall * k.Timeout, ProbeTimeout: k.Timeout,
		}

		var wrapper kms.Wrapper
		if held := b.unchanged(earlier); held != nil {
			wrapper = held.raw
		} else if wrapper, err = buildWrapper(ctx, earlier, b.reportReread(earlier)); err != nil {
			return nil, fmt.Errorf("key %s: also_known_as: %s: %w", k.Name, id, err)
		}
		if err := b.put(c, &key, earlier, wrapper); err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}

	return keys, nil
}

// earlierKey returns the configuration of the i-th key in also_known_as. The
// region comes from its ARN.
func earlierKey(k config.Key, i int) config.Key {
	k.Name, k.KeyID, k.Region = fmt.Sprintf("%s/%d", k.Name, i+1), k.AlsoKnownAs[i], ""
	k.AlsoKnownAs = nil
	return k
}

// warnOfTwins warns of configured keys that are the same KMS key.
func (b *backend) warnOfTwins() {
	for _, pair := range b.keys.Twins() {
		b.log.Warn("two configured keys are the same KMS key; objects under it are opened through the first",
			zap.String("kms_key_name", pair[0]), zap.String("other_kms_key_name", pair[1]))
	}
}

func isAlias(id string) bool {
	return strings.HasPrefix(id, "alias/") || strings.HasPrefix(id, "arn:") && strings.Contains(id, ":alias/")
}

// aliasCheck is the interval at which an alias is resolved.
const aliasCheck = time.Minute

// watchAlias warns when an alias points to another key than when the key was
// opened. It runs until ctx ends.
func (b *backend) watchAlias(ctx context.Context, k config.Key, w kms.Wrapper, every time.Duration) {
	target, ok := w.(interface {
		Target(ctx context.Context) (string, error)
	})
	if !ok || !isAlias(k.KeyID) {
		return
	}

	told := w.KeyID()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}

		now, err := target.Target(ctx)
		if err != nil || now == told {
			continue // errors of the KMS are reported elsewhere
		}
		told = now
		log := b.log.With(zap.String("kms_key_name", k.Name), zap.String("key_id", k.KeyID),
			zap.String("in_use", w.KeyID()), zap.String("now", now))

		switch {
		case now == w.KeyID():
			log.Info("the alias points to the key in use again")
		case slices.Contains(k.AlsoKnownAs, w.KeyID()):
			log.Warn("the alias points to another key: restart the proxy to use it for new objects")
		default:
			log.Warn("the alias points to another key: add the one in use to also_known_as, " +
				"or its objects cannot be read after a restart")
		}
	}
}

// checkAlias returns advice about an alias, and checks that the keys in
// also_known_as are enabled.
func checkAlias(ctx context.Context, k config.Key, arn string) (string, error) {
	var detail []string
	if isAlias(k.KeyID) {
		switch {
		case slices.ContainsFunc(k.AlsoKnownAs, func(id string) bool { return kms.SameKey(id, arn) }):
		case len(k.AlsoKnownAs) > 0:
			return "", fmt.Errorf(
				"%s points to %s, which is not in also_known_as: objects that are stored under it now "+
					"cannot be read by proxies that were started before the alias moved, "+
					"nor after it moves again; add it",
				k.KeyID,
				arn,
			)
		default:
			detail = append(
				detail,
				fmt.Sprintf("before %s moves to another key, put %s in also_known_as", k.KeyID, arn),
			)
		}
	}

	for i, id := range k.AlsoKnownAs {
		wrapper, err := buildWrapper(ctx, earlierKey(k, i), nil)
		if err != nil {
			return "", fmt.Errorf("also_known_as: %s: %w", id, err)
		}

		key, ok := wrapper.(interface {
			Enabled(ctx context.Context) error
		})
		if !ok {
			continue
		}

		var failure *kms.Error
		switch err := key.Enabled(ctx); {
		case err == nil:
		case errors.As(err, &failure) && failure.Kind == kms.Denied:
			detail = append(detail, "cannot check whether "+id+" is enabled: kms:DescribeKey is denied")
		default:
			return "", fmt.Errorf("also_known_as: objects under %s cannot be read: %w", id, err)
		}
	}

	return strings.Join(detail, "; "), nil
}
