// What the scripts of single libraries share. See tools_test.go.
import { readFileSync } from "node:fs";

// M is the manifest: endpoint, bucket and bodies.
export const M = JSON.parse(readFileSync(process.argv[2], "utf8"));

export const s3Settings = {
  endpoint: M.endpoint,
  region: M.region,
  forcePathStyle: true,
  credentials: { accessKeyId: process.env.AWS_ACCESS_KEY_ID, secretAccessKey: process.env.AWS_SECRET_ACCESS_KEY },
};

export const content = (body) => readFileSync(body.file);
export const body = (name) => M.bodies.find((b) => b.name === name);

let failures;

// same records a failure if two values differ.
export function same(what, got, want) {
  if (Buffer.isBuffer(want)) {
    if (!Buffer.isBuffer(got) || !want.equals(got)) failures.push(`${what}: got ${got?.length} bytes, not ${want.length}, or others`);
  } else if (JSON.stringify(got) !== JSON.stringify(want)) {
    failures.push(`${what}: ${JSON.stringify(got)}, not ${JSON.stringify(want)}`.slice(0, 600));
  }
}

// checks runs functions in order, and prints one line of JSON for each.
export async function checks(all) {
  for (const [check, run] of Object.entries(all)) {
    failures = [];
    try {
      await run();
    } catch (e) {
      failures.push(`${e.name}: ${e.message} ${e.stack?.split("\n")[1] ?? ""}`.slice(0, 800));
    }
    console.log(JSON.stringify({ check, status: failures.length ? "fail" : "ok", detail: failures.join("\n") }));
  }
}
