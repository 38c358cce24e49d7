// Appends events with the client's idempotent producer, and writes what became of it as JSON.
// Arguments: the stream's address, the write token, the epoch, and how many events.
import { DurableStream, IdempotentProducer } from "@durable-streams/client"

const [url, token, epoch, count] = process.argv.slice(2)
const stream = new DurableStream({
  url,
  headers: { "Electric-Claim-Token": token },
  contentType: "application/json",
})
const errors = []
const producer = new IdempotentProducer(stream, "handler", {
  epoch: Number(epoch),
  lingerMs: 0,
  maxBatchBytes: 1,
  onError: (error) => errors.push(error.name),
})
for (let n = 0; n < Number(count); n++) producer.append(JSON.stringify({ type: "line", n }))
await producer.flush().catch((error) => errors.push(error.name))
console.log(JSON.stringify({ errors, offset: producer.lastSuccessfulOffset, nextSeq: producer.nextSeq }))
