// Uploads a file with @aws-sdk/lib-storage, in parts of 8 MiB, eight at a
// time: upload.mjs ENDPOINT REGION BUCKET KEY FILE.
import { createReadStream } from "node:fs";
import { S3Client } from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";

const [endpoint, region, Bucket, Key, path] = process.argv.slice(2);
const client = new S3Client({ endpoint, region, forcePathStyle: true });
const params = { Bucket, Key, Body: createReadStream(path) };
await new Upload({ client, params, partSize: 8 << 20, queueSize: 8 }).done();
