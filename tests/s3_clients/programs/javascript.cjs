// The AWS SDK for JavaScript, version 3, with its managed upload. It answers as answering.py does.
"use strict";

const fs = require("node:fs");
const readline = require("node:readline");
const { pipeline } = require("node:stream/promises");
const s3 = require("@aws-sdk/client-s3");
const { Upload } = require("@aws-sdk/lib-storage");
const { version } = require("@aws-sdk/client-s3/package.json");

const Bucket = process.env.BUCKET;
const client = new s3.S3Client({});

const operations = {
  async put({ key, path }) {
    await client.send(new s3.PutObjectCommand({ Bucket, Key: key, Body: fs.createReadStream(path) }));
  },

  async get({ key, path }) {
    const got = await client.send(new s3.GetObjectCommand({ Bucket, Key: key }));
    await pipeline(got.Body, fs.createWriteStream(path));
  },

  async get_range({ key, start, stop, path }) {
    const Range = `bytes=${start}-${stop - 1}`;
    const got = await client.send(new s3.GetObjectCommand({ Bucket, Key: key, Range }));
    fs.writeFileSync(path, await got.Body.transformToByteArray());
  },

  async list_under({ prefix }) {
    const found = [];
    for await (const page of s3.paginateListObjectsV2({ client }, { Bucket, Prefix: prefix })) {
      found.push(...(page.Contents ?? []).map((item) => [item.Key, item.Size]));
    }
    return found;
  },

  // In parts of 5 MiB.
  async upload({ key, path }) {
    await new Upload({ client, params: { Bucket, Key: key, Body: fs.createReadStream(path) } }).done();
  },

  async copy({ key, to }) {
    const CopySource = encodeURIComponent(`${Bucket}/${key}`); // the SDK sends it as it is
    await client.send(new s3.CopyObjectCommand({ Bucket, Key: to, CopySource }));
  },

  async delete({ key }) {
    await client.send(new s3.DeleteObjectCommand({ Bucket, Key: key }));
  },

  async delete_under({ prefix }) {
    const Objects = (await operations.list_under({ prefix })).map(([Key]) => ({ Key }));
    const done = await client.send(new s3.DeleteObjectsCommand({ Bucket, Delete: { Objects } }));
    if (done.Errors?.length) throw new Error(JSON.stringify(done.Errors));
  },
};

async function main() {
  console.log(JSON.stringify({ version: `@aws-sdk/client-s3 ${version}` }));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { operation, arguments: named } = JSON.parse(line);
    let reply;
    try {
      reply = { result: (await operations[operation](named)) ?? null };
    } catch (error) {
      console.error(error);
      reply = { error: `${error.name}: ${error.message}` };
    }
    console.log(JSON.stringify(reply));
  }
}

main();
