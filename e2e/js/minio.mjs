// The checks of checks_test.go with minio-js, for the operations that it
// supports. See client.mjs.

import { createReadStream, readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Client, CopyConditions } from "minio";

const M = JSON.parse(readFileSync(process.argv[2], "utf8"));
const bucket = M.bucket;
const small = Buffer.from(M.small_text);
const url = new URL(M.endpoint);

function client(accessKey, secretKey) {
  return new Client({ endPoint: url.hostname, port: Number(url.port), useSSL: url.protocol === "https:", region: M.region, accessKey, secretKey });
}

const api = client(process.env.AWS_ACCESS_KEY_ID, process.env.AWS_SECRET_ACCESS_KEY);
const data = (body) => readFileSync(body.file);
const body = (name) => M.bodies.find((b) => b.name === name);

async function all(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const get = async (key) => Buffer.concat(await all(await api.getObject(bucket, key)));
const list = (prefix, recursive = true) => all(api.listObjectsV2(bucket, prefix, recursive));
const sizesOf = (objects) => Object.fromEntries(objects.filter((o) => o.name).map((o) => [o.name, o.size]));

// Check collects failures, so that one does not hide the next.
class Check {
  failures = [];

  same(what, got, want) {
    if (Buffer.isBuffer(want)) {
      if (!want.equals(got)) this.failures.push(`${what}: got ${got?.length} bytes, not ${want.length}, or others`);
    } else if (JSON.stringify(got) !== JSON.stringify(want)) {
      this.failures.push(`${what}: ${JSON.stringify(got)}, not ${JSON.stringify(want)}`.slice(0, 600));
    }
  }

  async refused(what, codes, call) {
    try {
      await call();
    } catch (e) {
      if (!codes.includes(e.code)) this.failures.push(`${what}: ${e.code}, not ${codes}: ${e.message}`.slice(0, 600));
      return;
    }
    this.failures.push(`${what}: was not refused`);
  }
}

async function buckets(c) {
  await api.makeBucket(bucket, M.region);
  c.same("exists", await api.bucketExists(bucket), true);
  c.same("another exists", await api.bucketExists(bucket + "-none"), false);
  c.same("in the list of buckets", (await api.listBuckets()).some((b) => b.name === bucket), true);
  await c.refused("listing no bucket", ["NoSuchBucket"], () => all(api.listObjectsV2(bucket + "-none", "", true)));
}

async function roundTrip(c) {
  for (const b of M.bodies) {
    await api.putObject(bucket, "bodies/" + b.name, data(b), b.size);
    c.same(b.name, await get("bodies/" + b.name), data(b));
    // The client sends a stream of unknown length as a multipart upload,
    // whose first part has number 2. If that part is also the last one and
    // is smaller than 5 MiB, the proxy rejects it: see
    // docs/s3-compatibility.md.
    if (b.size < 5 << 20) continue;
    await api.putObject(bucket, "streams/" + b.name, createReadStream(b.file));
    c.same(b.name + " as a stream", await get("streams/" + b.name), data(b));
  }
}

async function sizes(c) {
  const want = Object.fromEntries(M.bodies.map((b) => ["bodies/" + b.name, b.size]).sort(([a], [b]) => (a < b ? -1 : 1)));
  const listed = await list("bodies/");
  c.same("listed", sizesOf(listed), want);
  for (const o of listed) {
    const stat = await api.statObject(bucket, o.name);
    c.same("HEAD of " + o.name, [stat.size, stat.etag], [o.size, o.etag]);
  }
}

async function ranges(c) {
  const want = data(body("random-1048576"));
  for (const [offset, length] of [[0, 1], [0, 100], [65495, 2], [65400, 65701], [131032, 1], [1048575, 1], [1048000, 0]]) {
    const got = Buffer.concat(await all(await api.getPartialObject(bucket, "bodies/random-1048576", offset, length)));
    c.same(`${length} bytes at ${offset}`, got, want.subarray(offset, length ? offset + length : undefined));
  }
  await c.refused("beyond the end", ["InvalidRange"], () => api.getPartialObject(bucket, "bodies/random-1048576", 1048576, 1));
}

async function listing(c) {
  const top = {}, prefixes = [];
  for (let i = 0; i < 23; i++) {
    const n = String(i).padStart(2, "0");
    if (i % 3) prefixes.push(`list/dir-${n}/`);
    else top[`list/file-${n}`] = i;
    await api.putObject(bucket, i % 3 ? `list/dir-${n}/file` : `list/file-${n}`, small.subarray(0, i));
  }
  c.same("at any depth", (await list("list/")).length, 23);
  const found = await list("list/", false);
  c.same("with a delimiter", sizesOf(found), top);
  c.same("prefixes", found.filter((o) => o.prefix).map((o) => o.prefix), prefixes);
  c.same("version 1", sizesOf(await all(api.listObjects(bucket, "list/", false))), top);
}

async function oddKeys(c) {
  const want = {};
  const keys = M.keys.filter((key) => !key.includes("%")); // the client decodes keys that are not encoded
  for (const key of keys) {
    const content = Buffer.concat([small, Buffer.from(key)]);
    want[key] = content.length;
    await api.putObject(bucket, key, content);
    c.same(key, await get(key), content);
  }
  const listed = sizesOf(await list("odd/"));
  // In keys that it lists, the client decodes + as a space and removes
  // quotes.
  for (const key of keys.filter((key) => !/[+'"]/.test(key))) c.same("listed size of " + key, listed[key], want[key]);
}

async function presigned(c) {
  const b = body("random-65497");
  const fetched = async (what, address, status, want, options) => {
    const answer = await fetch(address, options);
    const got = Buffer.from(await answer.arrayBuffer());
    c.same(`${what}: ${answer.status === status ? "" : got.toString().slice(0, 300)}`, answer.status, status);
    if (want && answer.status === status) c.same(what, got, want);
  };
  const address = await api.presignedGetObject(bucket, "bodies/" + b.name, 3600);
  await fetched("GET", address, 200, data(b));
  await fetched("another key", address.replace("-65497", "-65496"), 403);
  await fetched("PUT", await api.presignedPutObject(bucket, "presigned", 3600), 200, null, { method: "PUT", body: data(b) });
  c.same("stored by URL", await get("presigned"), data(b));
  const brief = await api.presignedGetObject(bucket, "bodies/" + b.name, 1);
  await sleep(2500);
  await fetched("expired", brief, 403);
}

async function metadata(c) {
  await api.putObject(bucket, "metadata", small, small.length, { "Content-Type": "text/x-e2e", "Cache-Control": "max-age=60", Color: "dark blue" });
  const { metaData } = await api.statObject(bucket, "metadata");
  c.same("metadata", [metaData["content-type"], metaData["cache-control"], metaData.color], ["text/x-e2e", "max-age=60", "dark blue"]);
  c.same("the proxy's own", Object.keys(metaData).filter((name) => name.includes("cmek")), []);
}

async function multipart(c) {
  const folder = await mkdtemp(join(tmpdir(), "minio-js-"));
  try {
    await api.fPutObject(bucket, "large", M.large.file);
    const stat = await api.statObject(bucket, "large");
    c.same("size", stat.size, M.large.size);
    await api.fGetObject(bucket, "large", join(folder, "large"));
    c.same("large", readFileSync(join(folder, "large")), data(M.large));
    // A stream of unknown length is always a multipart upload.
    await api.putObject(bucket, "large-stream", createReadStream(M.large.file));
    c.same("parts in the ETag", /-[1-9]/.test((await api.statObject(bucket, "large-stream")).etag), true);
    c.same("large, as a stream", await get("large-stream"), data(M.large));
  } finally {
    await rm(folder, { recursive: true });
  }
}

async function copy(c) {
  for (const [key, want] of [["bodies/random-65497", data(body("random-65497"))], ["large", data(M.large)]]) {
    await api.copyObject(bucket, "copies/" + key, `/${bucket}/${key}`, new CopyConditions());
    c.same("copy of " + key, await get("copies/" + key), want);
  }
}

async function tags(c) {
  await api.setObjectTagging(bucket, "bodies/random-1", { project: "e2e", state: "a+b = c/d" });
  const got = (await api.getObjectTagging(bucket, "bodies/random-1")).flat();
  c.same("tags", Object.fromEntries(got.map((t) => [t.Key, t.Value]).sort()), { project: "e2e", state: "a+b = c/d" });
  await api.removeObjectTagging(bucket, "bodies/random-1");
}

async function remove(c) {
  const keys = [0, 1, 2, 3, 4].map((i) => `delete/${i}+ü&<x>`);
  for (const key of keys) await api.putObject(bucket, key, small);
  await api.removeObject(bucket, keys[0]);
  await c.refused("GET", ["NoSuchKey"], () => get(keys[0]));
  await c.refused("HEAD", ["NotFound"], () => api.statObject(bucket, keys[0]));
  await api.removeObjects(bucket, keys.slice(1));
  c.same("left", (await list("delete/")).length, 0);
  await c.refused("bucket that is not empty", ["BucketNotEmpty"], () => api.removeBucket(bucket));
  await api.makeBucket(bucket + "-gone", M.region);
  await api.removeBucket(bucket + "-gone");
}

async function credentials(c) {
  const stranger = client(process.env.AWS_ACCESS_KEY_ID, "not the secret of anybody at all");
  await c.refused("list", ["SignatureDoesNotMatch"], () => all(stranger.listObjectsV2(bucket, "", true)));
  await c.refused("GET", ["SignatureDoesNotMatch"], () => stranger.getObject(bucket, "bodies/random-1"));
  await c.refused("PUT", ["SignatureDoesNotMatch"], () => stranger.putObject(bucket, "stranger", small));
}

for (const [check, run] of [
  ["bucket", buckets],
  ["round trip", roundTrip],
  ["sizes", sizes],
  ["ranges", ranges],
  ["listing", listing],
  ["odd keys", oddKeys],
  ["presigned", presigned],
  ["metadata", metadata],
  ["multipart", multipart],
  ["copy", copy],
  ["tags", tags],
  ["delete", remove],
  ["credentials", credentials],
]) {
  const c = new Check();
  try {
    await run(c);
  } catch (e) {
    c.failures.push(`${e.code ?? e.name}: ${e.message}`.slice(0, 800));
  }
  console.log(JSON.stringify({ check, status: c.failures.length ? "fail" : "ok", detail: c.failures.join("\n") }));
}
process.exit(); // idle connections would keep it for two minutes
