// s3-sync-client: syncs directories with a bucket. Prints one line of JSON
// per check; see runScript in main_test.go.
import { mkdtempSync, readdirSync, readFileSync, utimesSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { S3Client, ListObjectsV2Command } from "@aws-sdk/client-s3";
import { S3SyncClient } from "s3-sync-client";
import { M, checks, content, s3Settings, same } from "./tool.mjs";

const s3 = new S3Client(s3Settings);
const { sync } = new S3SyncClient({ client: s3 });
const from = dirname(M.bodies[0].file);
const at = `s3://${M.bucket}/tree`;
const back = mkdtempSync(join(tmpdir(), "syncclient-"));
const count = readdirSync(from).length;
// Modification times of objects are in whole seconds. A file as new as its
// copy may be copied again.
for (const b of M.bodies) utimesSync(b.file, new Date(), new Date(Date.now() - 3_600_000));

await checks({
  async "round trip"() {
    const { created } = await sync(from, at);
    same("created", created.length, count);
    same("downloaded", (await sync(at, back)).created.length, count);
    for (const b of M.bodies) same(b.name, readFileSync(join(back, b.name)), content(b));
  },
  async sync() {
    for (const [a, b] of [[from, at], [at, back]]) {
      const { created, updated, deleted } = await sync(a, b);
      same(`${a} to ${b}`, [created, updated, deleted].map((l) => l.length), [0, 0, 0]);
    }
  },
  async multipart() {
    const large = `s3://${M.bucket}/large`;
    await sync(dirname(M.large.file), large, { partSize: 5 << 20 });
    const there = mkdtempSync(join(tmpdir(), "syncclient-"));
    await sync(large, there);
    same("large", readFileSync(join(there, M.large.name)), content(M.large));
  },
  async copy() {
    const { created } = await sync(at, `s3://${M.bucket}/copy`);
    same("copied", created.length, count);
  },
  async listing() {
    const { KeyCount } = await s3.send(new ListObjectsV2Command({ Bucket: M.bucket, Prefix: "copy/" }));
    same("keys", KeyCount, count);
  },
  async delete() {
    const { deleted } = await sync(mkdtempSync(join(tmpdir(), "empty-")), `s3://${M.bucket}/copy`, { del: true });
    same("deleted", deleted.length, count);
  },
});
