// Resumable uploads: a tus server with @tus/s3-store, and tus-js-client.
// Prints one line of JSON per check; see runScript in main_test.go.
import { createReadStream } from "node:fs";
import { S3Client, GetObjectCommand, ListMultipartUploadsCommand, ListObjectsV2Command } from "@aws-sdk/client-s3";
import { S3Store } from "@tus/s3-store";
import { Server } from "@tus/server";
import * as tus from "tus-js-client";
import { M, checks, content, s3Settings, same } from "./tool.mjs";

const Bucket = M.bucket;
const s3 = new S3Client(s3Settings);

// serve starts a server. It keeps no state: another one goes on with an
// upload.
async function serve() {
  const server = new Server({ path: "/files", datastore: new S3Store({ s3ClientConfig: { ...s3Settings, bucket: Bucket } }) });
  const http = server.listen({ host: "127.0.0.1", port: 0 });
  await new Promise((resolve) => http.once("listening", resolve));
  return { url: `http://127.0.0.1:${http.address().port}/files`, close: () => (http.close(), http.closeAllConnections()) };
}

let server = await serve();

// @tus/s3-store stores no empty files, at any store.
const bodies = M.bodies.filter((b) => b.size > 0);

// upload sends a body. If stop is set, it gives up after that many bytes and
// returns the URL of the upload.
function upload(b, { stop, ...options } = {}) {
  return new Promise((resolve, reject) => {
    const upload = new tus.Upload(createReadStream(b.file), {
      endpoint: server.url,
      uploadSize: b.size,
      metadata: { filename: b.name },
      retryDelays: [0, 100, 1000],
      chunkSize: stop ? 6 << 20 : Infinity,
      onError: reject,
      onChunkComplete: (_, sent) => stop && sent >= stop && upload.abort().then(() => resolve(upload.url), reject),
      onSuccess: () => resolve(upload.url),
      ...options,
    });
    upload.start();
  });
}

async function stored(b, url) {
  const answer = await s3.send(new GetObjectCommand({ Bucket, Key: url.split("/").pop() }));
  same(b.name, Buffer.from(await answer.Body.transformToByteArray()), content(b));
}

// resumed stops an upload behind its first chunk, restarts the server, and
// goes on. What is below the minimum size of a part is in an object of its own
// meanwhile.
async function resumed() {
  const url = await upload(M.large, { stop: 6 << 20 });
  server.close();
  server = await serve();
  const moved = server.url + "/" + url.split("/").pop();
  const head = await fetch(moved, { method: "HEAD", headers: { "Tus-Resumable": "1.0.0" } });
  same("bytes that the new server has", Number(head.headers.get("upload-offset")) >= 6 << 20, true);
  await stored(M.large, await upload(M.large, { uploadUrl: moved }));
  const read = await fetch(moved);
  same("read through the server", Buffer.from(await read.arrayBuffer()), content(M.large));
}

await checks({
  async "round trip"() {
    for (const b of bodies) await stored(b, await upload(b));
  },
  async multipart() {
    await stored(M.large, await upload(M.large));
    await resumed();
  },
  async listing() {
    const { Contents = [] } = await s3.send(new ListObjectsV2Command({ Bucket }));
    same("objects", Contents.filter((o) => !o.Key.endsWith(".info")).length, bodies.length + 2);
    same("uploads", (await s3.send(new ListMultipartUploadsCommand({ Bucket }))).Uploads ?? [], []);
  },
  // Only an upload that is not complete can be terminated.
  async delete() {
    const url = await upload(M.large, { stop: 6 << 20 });
    same("uploads", (await s3.send(new ListMultipartUploadsCommand({ Bucket }))).Uploads?.length, 1);
    const answer = await fetch(url, { method: "DELETE", headers: { "Tus-Resumable": "1.0.0" } });
    same("status", answer.status, 204);
    same("uploads left", (await s3.send(new ListMultipartUploadsCommand({ Bucket }))).Uploads ?? [], []);
    const { KeyCount } = await s3.send(new ListObjectsV2Command({ Bucket, Prefix: url.split("/").pop() }));
    same("objects left", KeyCount, 0);
  },
});
server.close();
