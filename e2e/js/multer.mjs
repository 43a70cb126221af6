// multer-s3: uploads of HTML forms to an Express server, which streams them
// to S3. Prints one line of JSON per check; see runScript in main_test.go.
import { S3Client, GetObjectCommand, HeadObjectCommand, ListObjectsV2Command } from "@aws-sdk/client-s3";
import express from "express";
import multer from "multer";
import multerS3 from "multer-s3";
import { M, body, checks, content, s3Settings, same } from "./tool.mjs";

const s3 = new S3Client(s3Settings);
const Bucket = M.bucket;
const storage = multerS3({
  s3,
  bucket: Bucket,
  contentType: multerS3.AUTO_CONTENT_TYPE,
  metadata: (_, file, done) => done(null, { field: file.fieldname }),
  key: (_, file, done) => done(null, "forms/" + file.originalname),
});
const app = express();
app.post("/", multer({ storage }).array("files"), (request, answer) => answer.json(request.files));
app.use((error, _request, answer, _next) => answer.status(500).send(String(error.stack)));
const server = app.listen(0, "127.0.0.1");
await new Promise((resolve) => server.once("listening", resolve));

async function upload(bodies) {
  const form = new FormData();
  for (const b of bodies) form.append("files", new Blob([content(b)]), b.name);
  const answer = await fetch(`http://127.0.0.1:${server.address().port}/`, { method: "POST", body: form });
  if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
  return answer.json();
}

// multer-s3 waits for the first byte of an empty file for ever.
const bodies = M.bodies.filter((b) => b.size > 0);

async function stored(b) {
  const answer = await s3.send(new GetObjectCommand({ Bucket, Key: "forms/" + b.name }));
  same(b.name, Buffer.from(await answer.Body.transformToByteArray()), content(b));
}

await checks({
  async "round trip"() {
    const files = await upload(bodies);
    same("files", files.map((f) => [f.key, f.size]), bodies.map((b) => ["forms/" + b.name, b.size]));
    for (const b of bodies) await stored(b);
  },
  async multipart() {
    const [file] = await upload([M.large]);
    const head = await s3.send(new HeadObjectCommand({ Bucket, Key: file.key }));
    same("ETag", file.etag, head.ETag);
    await stored(M.large);
  },
  async metadata() {
    const head = await s3.send(new HeadObjectCommand({ Bucket, Key: "forms/" + body("text-65497").name }));
    same("metadata", head.Metadata, { field: "files" });
  },
  async listing() {
    const { KeyCount } = await s3.send(new ListObjectsV2Command({ Bucket, Prefix: "forms/" }));
    same("keys", KeyCount, bodies.length + 1);
  },
  async delete() {
    const key = "forms/text-65497";
    await new Promise((resolve, reject) => storage._removeFile({}, { bucket: Bucket, key }, (e) => (e ? reject(e) : resolve())));
    const { KeyCount } = await s3.send(new ListObjectsV2Command({ Bucket, Prefix: key }));
    same("left", KeyCount, 0);
  },
});
server.close();
server.closeAllConnections();
