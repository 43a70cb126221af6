// A LanceDB table on S3: rows, a vector index, an update, versions and a
// restore. Prints one line of JSON per check; see runScript in main_test.go.
import { connect, Index } from "@lancedb/lancedb";
import { M, checks, same, s3Settings } from "../tool.mjs";

const db = await connect(`s3://${M.bucket}/lance`, { storageOptions: {
  endpoint: M.endpoint, region: M.region, allowHttp: String(M.endpoint.startsWith("http:")),
  accessKeyId: s3Settings.credentials.accessKeyId, secretAccessKey: s3Settings.credentials.secretAccessKey,
} });
const dimensions = 64;
const vector = (i) => Array.from({ length: dimensions }, (_, d) => Math.sin(i * (d + 1)));
const rows = (from, to) => Array.from({ length: to - from }, (_, i) => ({ id: from + i, text: `${M.small_text} ${from + i}`, vector: vector(from + i) }));
let table;

await checks({
  async "round trip"() {
    table = await db.createTable("things", rows(0, 10_000));
    await table.add(rows(10_000, 20_000));
    same("rows", await table.countRows(), 20_000);
    const [row] = await table.query().where("id = 12345").limit(1).toArray();
    same("a row", row.text, `${M.small_text} 12345`);
  },
  // The index and the columns are read in ranges.
  async ranges() {
    await table.createIndex("vector", { config: Index.ivfPq({ numPartitions: 8, numSubVectors: 16 }) });
    for (const id of [7, 9_999, 19_999]) {
      const found = await table.vectorSearch(vector(id)).refineFactor(50).nprobes(8).limit(1).toArray();
      same(`nearest to ${id}`, found[0]?.id, id);
    }
  },
  // Commits are PUTs with If-None-Match: one of two writers at a time wins.
  async conditions() {
    const before = await table.version();
    await Promise.all([0, 1, 2, 3].map(async (i) => (await db.openTable("things")).add(rows(20_000 + i * 10, 20_010 + i * 10))));
    await table.checkoutLatest();
    same("rows after four writers", await table.countRows(), 20_040);
    same("versions", (await table.version()) - before, 4);
  },
  async listing() {
    same("tables", await db.tableNames(), ["things"]);
    same("the first version", (await table.listVersions()).some((v) => v.version === 1), true);
    await table.checkout(1);
    same("rows of version 1", await table.countRows(), 10_000);
    await table.checkoutLatest();
  },
  async delete() {
    await table.delete("id < 5000");
    await table.optimize({ cleanupOlderThan: new Date(Date.now() + 1000) });
    same("rows left", await table.countRows(), 15_040);
    await db.createTable("gone", rows(0, 10));
    await db.dropTable("gone");
    same("tables left", await db.tableNames(), ["things"]);
  },
});
