// The peer of the row `orders_five_workers`: a queue for each warehouse, concurrency 1.
//
// node bullmq_orders.cjs MODULES PORT WORKLOAD send
// node bullmq_orders.cjs MODULES PORT WORKLOAD work NUMBER WORKERS
//
// Each process prints `ready`. The sender waits for a line on standard input. A worker prints `done` when every
// order of its queues is done.

"use strict";

const { createRequire } = require("node:module");
const { readFileSync } = require("node:fs");
const { join } = require("node:path");

const [modules, port, workload, role, number, workers] = process.argv.slice(2);
const load = createRequire(join(modules, "package.json"));
const { Queue, Worker } = load("bullmq");
const Redis = load("ioredis");

const connection = { host: "127.0.0.1", port: Number(port), maxRetriesPerRequest: null };
const { warehouses, orders } = JSON.parse(readFileSync(workload, "utf8"));
const CHUNK = 1000;

async function send() {
  const queues = [];
  for (let each = 0; each < warehouses; each++) {
    queues.push(new Queue(`orders-${each}`, { connection }));
    await queues[each].waitUntilReady();
  }
  console.log("ready");
  await new Promise((resolve) => process.stdin.once("data", resolve));
  for (let start = 0; start < orders.length; start += CHUNK) {
    const bulks = queues.map(() => []);
    for (const [warehouse, lines] of orders.slice(start, start + CHUNK)) {
      bulks[warehouse].push({ name: "order", data: { lines }, opts: { removeOnComplete: true } });
    }
    await Promise.all(bulks.map((bulk, each) => (bulk.length ? queues[each].addBulk(bulk) : null)));
  }
}

async function work() {
  const redis = new Redis(connection);
  const mine = (warehouse) => warehouse % Number(workers) === Number(number);
  let left = orders.filter(([warehouse]) => mine(warehouse)).length;
  const started = [];
  for (let each = 0; each < warehouses; each++) {
    if (!mine(each)) continue;
    const key = `warehouse:${each}`;
    const deduct = async (job) => {
      const stock = JSON.parse(await redis.get(key));
      for (const [article, quantity] of job.data.lines) {
        if (stock[article] < quantity) throw new Error(`${article}: ${stock[article]} left`);
      }
      for (const [article, quantity] of job.data.lines) stock[article] -= quantity;
      await redis.set(key, JSON.stringify(stock));
      return 1;
    };
    const worker = new Worker(`orders-${each}`, deduct, { connection, concurrency: 1 });
    worker.on("error", (error) => console.error(error));
    worker.on("failed", (job, error) => console.error(error));
    worker.on("completed", () => {
      left -= 1;
      if (left === 0) console.log("done");
    });
    started.push(worker.waitUntilReady());
  }
  await Promise.all(started);
  console.log("ready");
}

(role === "send" ? send() : work()).catch((error) => {
  console.error(error);
  process.exit(1);
});
