# The image with PKCS#11, for a hardware security module. The vendor's library is
# a shared object, so this one needs cgo, a dynamic loader and a C library, and
# with them comes Debian: the image has 168 MB in deploy/image/full.sh and not 35,
# and packages to keep up to date. It is built on the platform that it is for,
# because cgo needs that platform's compiler.
#
# Add the vendor's library in an image of your own, or mount it:
#
#   FROM cmekproxy:0.1.0-pkcs11
#   COPY libvendor.so /usr/lib/
ARG GO_IMAGE=golang:1.26-bookworm
ARG DEBIAN_IMAGE=debian:bookworm-slim
FROM $GO_IMAGE AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
ARG GOFIPS140=off
RUN CGO_ENABLED=1 GOFIPS140=$GOFIPS140 go build -tags nodev,pkcs11 -trimpath \
      -ldflags "-s -w -X main.release=$VERSION" -o /cmekproxy ./cmd/proxy \
    && mkdir /licenses && cp LICENSE /licenses/ \
    && go run ./deploy/internal/licenses /cmekproxy >/licenses/THIRD_PARTY_LICENSES

FROM $DEBIAN_IMAGE
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates libstdc++6 tzdata \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/* \
    && groupadd --gid 65532 nonroot && useradd --uid 65532 --gid 65532 --home-dir / --shell /sbin/nologin nonroot
COPY --from=build /cmekproxy /cmekproxy
COPY --from=build /licenses /licenses
USER 65532:65532
EXPOSE 9000 9002
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/cmekproxy", "health"]
ENTRYPOINT ["/cmekproxy"]
CMD ["serve"]

ARG VERSION=
ARG REVISION=
ARG CREATED=
LABEL org.opencontainers.image.title="cmekproxy" \
      org.opencontainers.image.description="S3 proxy that encrypts objects under the key owner's KMS key, with PKCS#11" \
      org.opencontainers.image.source="https://github.com/cmekproxy/cmekproxy" \
      org.opencontainers.image.documentation="https://github.com/cmekproxy/cmekproxy/blob/main/docs/README.md" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
