// The checks of checks_test.go with @aws-sdk/client-s3. Prints one line of
// JSON per check; see runScript in main_test.go. Credentials and the trusted
// certificate are in the environment. The only argument is the manifest.

import { createHash, randomBytes } from "node:crypto";
import { createReadStream, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import {
  CompleteMultipartUploadCommand,
  CopyObjectCommand,
  CreateBucketCommand,
  CreateMultipartUploadCommand,
  DeleteBucketCommand,
  DeleteObjectCommand,
  DeleteObjectTaggingCommand,
  DeleteObjectsCommand,
  GetObjectCommand,
  GetObjectTaggingCommand,
  HeadBucketCommand,
  HeadObjectCommand,
  ListBucketsCommand,
  ListObjectsCommand,
  ListObjectsV2Command,
  PutObjectCommand,
  PutObjectTaggingCommand,
  S3Client,
  UploadPartCommand,
  paginateListObjectsV2,
} from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";

const M = JSON.parse(readFileSync(process.argv[2], "utf8"));
const Bucket = M.bucket;
const small = Buffer.from(M.small_text);

function client(credentials, more = {}) {
  return new S3Client({ endpoint: M.endpoint, region: M.region, forcePathStyle: true, ...(credentials && { credentials }), ...more });
}

const s3 = client();
const put = (Key, Body, more = {}) => s3.send(new PutObjectCommand({ Bucket, Key, Body, ...more }));
const read = (Key, more = {}) => s3.send(new GetObjectCommand({ Bucket, Key, ...more }));
const get = async (Key, more) => Buffer.from(await (await read(Key, more)).Body.transformToByteArray());
const head = (Key, more = {}) => s3.send(new HeadObjectCommand({ Bucket, Key, ...more }));
const list = (Prefix, more = {}) => s3.send(new ListObjectsV2Command({ Bucket, Prefix, ...more }));
const data = (body) => readFileSync(body.file);
const body = (name) => M.bodies.find((b) => b.name === name);
const sizesOf = (objects = []) => Object.fromEntries(objects.map((o) => [o.Key, o.Size]));

// Check collects failures, so that one does not hide the next.
class Check {
  failures = [];

  same(what, got, want) {
    if (Buffer.isBuffer(want)) {
      if (!want.equals(got)) this.failures.push(`${what}: got ${got?.length} bytes, not ${want.length}, or others`);
    } else if (stable(got) !== stable(want)) {
      this.failures.push(`${what}: ${stable(got)}, not ${stable(want)}`.slice(0, 600));
    }
  }

  async refused(what, status, names, call) {
    try {
      await call();
    } catch (e) {
      const got = e.$metadata?.httpStatusCode;
      if (got !== status || !names.includes(e.name)) {
        this.failures.push(`${what}: ${got} ${e.name}, not ${status} ${names}: ${e.message}`.slice(0, 600));
      }
      return;
    }
    this.failures.push(`${what}: was not refused`);
  }
}

// stable returns JSON with sorted keys.
function stable(value) {
  return JSON.stringify(value, (_, v) =>
    v && typeof v === "object" && !Array.isArray(v) ? Object.fromEntries(Object.entries(v).sort(([a], [b]) => (a < b ? -1 : 1))) : v,
  );
}

async function bucket(c) {
  await s3.send(new CreateBucketCommand({ Bucket, CreateBucketConfiguration: { LocationConstraint: M.region } }));
  await s3.send(new HeadBucketCommand({ Bucket }));
  const { Buckets } = await s3.send(new ListBucketsCommand({}));
  c.same("in the list of buckets", Buckets.some((b) => b.Name === Bucket), true);
  c.same("objects in a new bucket", (await list("")).KeyCount, 0);
  await c.refused("listing no bucket", 404, ["NoSuchBucket"], () => s3.send(new ListObjectsV2Command({ Bucket: Bucket + "-none" })));
}

async function roundTrip(c) {
  for (const b of M.bodies) {
    const { Size = b.size } = await put("bodies/" + b.name, data(b));
    // Most stores return no size here. If one does, it must not be the size
    // of the ciphertext.
    c.same(b.name + ", Size in the answer to PUT", Size, b.size);
    c.same(b.name, await get("bodies/" + b.name), data(b));
    // A stream is sent in chunks, with its checksum in the trailer.
    await put("streams/" + b.name, createReadStream(b.file), { ContentLength: b.size });
    c.same(b.name + " as a stream", await get("streams/" + b.name), data(b));
  }
}

async function sizes(c) {
  const want = Object.fromEntries(M.bodies.map((b) => ["bodies/" + b.name, b.size]));
  const { Contents } = await list("bodies/");
  c.same("listed", sizesOf(Contents), want);
  for (const o of Contents) {
    const answer = await head(o.Key);
    c.same("HEAD of " + o.Key, answer.ContentLength, want[o.Key]);
    c.same("ETag of " + o.Key, answer.ETag, o.ETag);
  }
}

async function ranges(c) {
  const want = data(body("random-1048576"));
  const key = "bodies/random-1048576";
  for (const [spec, part] of Object.entries({
    "0-0": want.subarray(0, 1),
    "65495-65496": want.subarray(65495, 65497),
    "65400-131100": want.subarray(65400, 131101),
    "131032-131032": want.subarray(131032, 131033),
    "1048575-1048575": want.subarray(1048575),
    "1048000-": want.subarray(1048000),
    "-1": want.subarray(-1),
    "-70000": want.subarray(-70000),
    "1048000-9999999": want.subarray(1048000),
    "-9999999": want,
  })) {
    const answer = await read(key, { Range: "bytes=" + spec });
    c.same(spec, Buffer.from(await answer.Body.transformToByteArray()), part);
    c.same(spec + ", status", answer.$metadata.httpStatusCode, 206);
    c.same(spec + ", Content-Range ends in", answer.ContentRange?.split("/")[1], String(want.length));
  }
  for (const spec of ["1048576-", "2000000-3000000"]) {
    await c.refused(spec, 416, ["InvalidRange"], () => get(key, { Range: "bytes=" + spec }));
  }
}

async function listing(c) {
  const everything = {}, top = {}, prefixes = [];
  for (let i = 0; i < 23; i++) {
    const n = String(i).padStart(2, "0");
    let key = `list/file-${n}`;
    if (i % 3) {
      prefixes.push(`list/dir-${n}/`);
      key = `list/dir-${n}/file`;
    } else {
      top[key] = i;
    }
    everything[key] = i;
    await put(key, small.subarray(0, i));
  }
  const pages = async (more) => {
    const all = [];
    for await (const page of paginateListObjectsV2({ client: s3, pageSize: 7 }, { Bucket, Prefix: "list/", ...more })) all.push(page);
    return all;
  };
  let found = await pages({});
  c.same("pages", found.length, 4);
  c.same("in pages of 7", sizesOf(found.flatMap((p) => p.Contents ?? [])), everything);
  found = await pages({ Delimiter: "/" });
  c.same("with a delimiter", sizesOf(found.flatMap((p) => p.Contents ?? [])), top);
  c.same("prefixes", found.flatMap((p) => (p.CommonPrefixes ?? []).map((q) => q.Prefix)), prefixes);
  const v1 = await s3.send(new ListObjectsCommand({ Bucket, Prefix: "list/", EncodingType: "url" }));
  const decoded = v1.Contents.map((o) => ({ ...o, Key: decodeURIComponent(o.Key) })); // some stores escape "/" too
  c.same("version 1", sizesOf(decoded), everything);
}

async function oddKeys(c) {
  const want = {};
  for (const key of M.keys) {
    const content = Buffer.concat([small, Buffer.from(key)]);
    want[key] = content.length;
    await put(key, content);
    c.same(key, await get(key), content);
    c.same("HEAD of " + key, (await head(key)).ContentLength, content.length);
  }
  c.same("listed", sizesOf((await list("odd/")).Contents), want);
}

// fetched sends a request to a URL as a program without an SDK does.
async function fetched(c, what, url, status, want, options = {}) {
  const answer = await fetch(url, options);
  const got = Buffer.from(await answer.arrayBuffer());
  c.same(`${what}: ${answer.status === status ? "" : got.toString().slice(0, 300)}`, answer.status, status);
  if (want && answer.status === status) c.same(what, got, want);
}

async function presigned(c) {
  const b = body("random-65497");
  const sign = (command, Key, expiresIn = 3600) => getSignedUrl(s3, new command({ Bucket, Key }), { expiresIn });
  const url = await sign(GetObjectCommand, "bodies/" + b.name);
  await fetched(c, "GET", url, 200, data(b));
  await fetched(c, "HEAD", await sign(HeadObjectCommand, "bodies/" + b.name), 200, null, { method: "HEAD" });
  await fetched(c, "another signature", url.replace(/Signature=(.)/, (_, d) => "Signature=" + (d === "0" ? "1" : "0")), 403);
  await fetched(c, "another key", url.replace("-65497", "-65496"), 403);
  await fetched(c, "another expiry", url.replace("X-Amz-Expires=3600", "X-Amz-Expires=7200"), 403);
  await fetched(c, "another method", url, 403, null, { method: "DELETE" });
  if (M.proxied) await presignedByDefault(c, data(b)); // some stores check the body against the checksum in the URL
  const plain = client(undefined, { requestChecksumCalculation: "WHEN_REQUIRED" });
  const put = await getSignedUrl(plain, new PutObjectCommand({ Bucket, Key: "presigned" }), { expiresIn: 3600 });
  await fetched(c, "PUT", put, 200, null, { method: "PUT", body: data(b) });
  c.same("stored by URL", await get("presigned"), data(b));
  // The SDK moves x-amz-copy-source into the URL.
  if (M.proxied) {
    const CopySource = `${Bucket}/bodies/${b.name}`;
    const copy = await getSignedUrl(plain, new CopyObjectCommand({ Bucket, Key: "presigned-copy", CopySource }), { expiresIn: 3600 });
    await fetched(c, "copy", copy, 200, null, { method: "PUT" });
    c.same("copied by URL", await get("presigned-copy"), data(b));
  }
  const brief = await sign(GetObjectCommand, "bodies/" + b.name, 1);
  await sleep(2500);
  await fetched(c, "expired", brief, 403);
}

// presignedByDefault uploads an object and a part with the SDK's defaults.
// Without a body to sign, the SDK puts the checksum of an empty body into the
// URL, which S3 ignores.
async function presignedByDefault(c, content) {
  const upload = async (what, command) => {
    const url = await getSignedUrl(s3, command, { expiresIn: 3600 });
    c.same(`${what} has the checksum of nothing`, new URL(url).searchParams.get("x-amz-checksum-crc32"), "AAAAAA==");
    const answer = await fetch(url, { method: "PUT", body: content });
    c.same(`${what} by default: ${await answer.text()}`, answer.status, 200);
    c.same(`${what} by default, checksum in the answer`, answer.headers.get("x-amz-checksum-crc32"), null);
    return answer.headers.get("etag");
  };

  await upload("PUT", new PutObjectCommand({ Bucket, Key: "presigned-default" }));
  c.same("stored by the default URL", await get("presigned-default", { ChecksumMode: "ENABLED" }), content);

  const Key = "presigned-part";
  const { UploadId } = await s3.send(new CreateMultipartUploadCommand({ Bucket, Key }));
  const ETag = await upload("a part", new UploadPartCommand({ Bucket, Key, UploadId, PartNumber: 1 }));
  const MultipartUpload = { Parts: [{ PartNumber: 1, ETag }] };
  await s3.send(new CompleteMultipartUploadCommand({ Bucket, Key, UploadId, MultipartUpload }));
  c.same("stored as a part by the default URL", await get(Key, { ChecksumMode: "ENABLED" }), content);
}

async function metadata(c) {
  const want = {
    ContentType: "text/x-e2e",
    CacheControl: "max-age=60, private",
    ContentDisposition: 'attachment; filename="a b.txt"',
    ContentEncoding: "gzip",
    ContentLanguage: "de-AT",
    Metadata: { color: "dark blue", "shape-of-it": "a=b;c" },
  };
  await put("metadata", small, want);
  for (const [what, answer] of [["HEAD", await head("metadata")], ["GET", await read("metadata")]]) {
    await answer.Body?.transformToByteArray();
    for (const [name, value] of Object.entries(want)) {
      if (!M.proxied && name === "ContentEncoding") continue; // the store itself returns aws-chunked
      c.same(`${what}, ${name}`, answer[name], value);
    }
  }
}

const sums = {
  SHA1: (d) => createHash("sha1").update(d).digest("base64"),
  SHA256: (d) => createHash("sha256").update(d).digest("base64"),
};

async function checksums(c) {
  for (const name of ["random-0", "random-65497", "random-1048576"]) {
    const content = data(body(name));
    for (const key of ["bodies/" + name, "streams/" + name]) {
      c.same(key + " by default", await get(key, { ChecksumMode: "ENABLED" }), content);
    }
    for (const algorithm of ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"]) {
      const key = `checksums/${algorithm}-${name}`;
      const stored = await put(key, content, { ChecksumAlgorithm: algorithm });
      const answer = await read(key, { ChecksumMode: "ENABLED" });
      c.same(`${algorithm} of ${name}`, Buffer.from(await answer.Body.transformToByteArray()), content);
      const field = "Checksum" + algorithm;
      const want = sums[algorithm]?.(content) ?? answer[field];
      c.same(`${algorithm} of ${name}, GET`, answer[field], want);
      c.same(`${algorithm} of ${name}, PUT`, stored[field], want);
      c.same(`${algorithm} of ${name}, given`, typeof answer[field], "string");
    }
  }
  for (const [algorithm, sum] of Object.entries(sums)) {
    const key = "checksums/wrong-" + algorithm;
    const more = { ["Checksum" + algorithm]: sum(Buffer.from("something else")) };
    await c.refused("a wrong " + algorithm, 400, ["BadDigest"], () => put(key, small, more));
    await c.refused("after a wrong " + algorithm, 404, ["NotFound"], () => head(key));
  }
}

async function contentMD5(c) {
  const content = data(body("random-65497"));
  const md5 = (d) => createHash("md5").update(d).digest("base64");
  await put("md5", content, { ContentMD5: md5(content) });
  for (const key of ["md5", "md5-new"]) {
    await c.refused("a wrong Content-MD5", 400, ["BadDigest"], () => put(key, small, { ContentMD5: md5("something else") }));
  }
  await c.refused("after that", 404, ["NotFound"], () => head("md5-new"));
  c.same("what a refused PUT would have replaced", await get("md5"), content);
}

async function conditions(c) {
  const { ETag } = await put("conditions", small);
  c.same("the ETag of PUT and HEAD", (await head("conditions")).ETag, ETag);
  const other = '"0123456789abcdef0123456789abcdef"';
  c.same("If-Match", await get("conditions", { IfMatch: ETag }), small);
  c.same("If-None-Match", await get("conditions", { IfNoneMatch: other }), small);
  await c.refused("If-None-Match", 304, ["304", "NotModified", "UnknownError", "Unknown"], () => get("conditions", { IfNoneMatch: ETag }));
  await c.refused("If-Match", 412, ["PreconditionFailed"], () => get("conditions", { IfMatch: other }));
  await c.refused("PUT, If-None-Match *", 412, ["PreconditionFailed"], () => put("conditions", "x", { IfNoneMatch: "*" }));
  await put("conditions-new", small, { IfNoneMatch: "*" });
  await c.refused("PUT, If-Match", 412, ["PreconditionFailed"], () => put("conditions", "x", { IfMatch: other }));
  c.same("after refused PUTs", await get("conditions"), small);
  if (M.put_if_match) {
    await put("conditions", "replaced", { IfMatch: ETag });
    c.same("after PUT, If-Match", await get("conditions"), Buffer.from("replaced"));
  }
}

// multipart uses Upload of lib-storage with its defaults: parts of 5 MiB,
// four at a time.
async function multipart(c) {
  const want = data(M.large);
  const upload = new Upload({ client: s3, params: { Bucket, Key: "large", Body: createReadStream(M.large.file) } });
  const done = await upload.done();
  const answer = await head("large");
  if (done.ETag) c.same("ETag", answer.ETag, done.ETag); // Ceph 16 answers without
  c.same("parts in the ETag", answer.ETag.split("-")[1], '4"');
  c.same("size", answer.ContentLength, want.length);
  c.same("large", await get("large"), want);
  await new Upload({ client: s3, params: { Bucket, Key: "large-buffer", Body: want } }).done();
  c.same("large, from memory", await get("large-buffer"), want);
}

async function copy(c) {
  for (const [key, want] of [["bodies/random-65497", data(body("random-65497"))], ["large", data(M.large)]]) {
    await s3.send(new CopyObjectCommand({ Bucket, Key: "copies/" + key, CopySource: `${Bucket}/${key}` }));
    c.same("copy of " + key, await get("copies/" + key), want);
  }
  await put("copies/metadata", small, { Metadata: { color: "blue" } });
  const Metadata = { color: "red" };
  await s3.send(new CopyObjectCommand({ Bucket, Key: "copies/metadata", CopySource: `${Bucket}/copies/metadata`, MetadataDirective: "REPLACE", Metadata }));
  c.same("replaced metadata", (await head("copies/metadata")).Metadata, Metadata);
}

async function tags(c) {
  const Key = "bodies/random-1";
  const TagSet = [{ Key: "project", Value: "e2e" }, { Key: "state", Value: "a+b = c/d" }];
  await s3.send(new PutObjectTaggingCommand({ Bucket, Key, Tagging: { TagSet } }));
  const got = (await s3.send(new GetObjectTaggingCommand({ Bucket, Key }))).TagSet;
  c.same("tags", got.sort((a, b) => (a.Key < b.Key ? -1 : 1)), TagSet);
  await s3.send(new DeleteObjectTaggingCommand({ Bucket, Key }));
  c.same("after DeleteObjectTagging", (await s3.send(new GetObjectTaggingCommand({ Bucket, Key }))).TagSet ?? [], []);
}

async function remove(c) {
  const keys = [0, 1, 2, 3, 4].map((i) => `delete/${i}+ü&<x>`);
  for (const key of keys) await put(key, small);
  await s3.send(new DeleteObjectCommand({ Bucket, Key: keys[0] }));
  await s3.send(new DeleteObjectCommand({ Bucket, Key: keys[0] })); // not an error in S3
  await c.refused("GET", 404, ["NoSuchKey"], () => get(keys[0]));
  await c.refused("HEAD", 404, ["NotFound"], () => head(keys[0]));
  const Delete = { Objects: keys.slice(1).map((Key) => ({ Key })) };
  const answer = await s3.send(new DeleteObjectsCommand({ Bucket, Delete }));
  c.same("deleted", (answer.Deleted ?? []).map((d) => d.Key).sort(), keys.slice(1));
  c.same("errors", answer.Errors ?? [], []);
  c.same("left", (await list("delete/")).KeyCount, 0);
  await c.refused("bucket that is not empty", 409, ["BucketNotEmpty"], () => s3.send(new DeleteBucketCommand({ Bucket })));
  const gone = Bucket + "-gone";
  await s3.send(new CreateBucketCommand({ Bucket: gone, CreateBucketConfiguration: { LocationConstraint: M.region } }));
  await s3.send(new DeleteBucketCommand({ Bucket: gone }));
}

async function credentials(c) {
  const accessKeyId = process.env.AWS_ACCESS_KEY_ID, secretAccessKey = process.env.AWS_SECRET_ACCESS_KEY;
  const strangers = { SignatureDoesNotMatch: { accessKeyId, secretAccessKey: randomBytes(20).toString("hex") } };
  if (M.proxied) strangers.InvalidAccessKeyId = { accessKeyId: "AKUNKNOWN" + randomBytes(5).toString("hex"), secretAccessKey }; // the store itself answers 404
  for (const [code, who] of Object.entries(strangers)) {
    const stranger = client(who);
    await c.refused("list", 403, [code], () => stranger.send(new ListObjectsV2Command({ Bucket })));
    await c.refused("GET", 403, [code], () => stranger.send(new GetObjectCommand({ Bucket, Key: "bodies/random-1" })));
    await c.refused("PUT", 403, [code], () => stranger.send(new PutObjectCommand({ Bucket, Key: "stranger", Body: small })));
  }
  await c.refused("what a stranger stored", 404, ["NotFound"], () => head("stranger"));
}

for (const [check, run] of [
  ["bucket", bucket],
  ["round trip", roundTrip],
  ["sizes", sizes],
  ["ranges", ranges],
  ["listing", listing],
  ["odd keys", oddKeys],
  ["presigned", presigned],
  ["metadata", metadata],
  ["checksums", checksums],
  ["content-md5", contentMD5],
  ["conditions", conditions],
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
    c.failures.push(`${e.name}: ${e.message}`.slice(0, 800));
  }
  console.log(JSON.stringify({ check, status: c.failures.length ? "fail" : "ok", detail: c.failures.join("\n") }));
}
