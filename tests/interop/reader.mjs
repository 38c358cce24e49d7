// Reads a stream for ever with the client as it is, and writes each batch as a line of JSON.
// Arguments: the stream's address, the offset to begin at, the principal.
import { DurableStream } from "@durable-streams/client"

const [url, offset, principal] = process.argv.slice(2)
const headers = { "Electric-Principal": principal }
const stream = new DurableStream({ url, headers, offset })
const response = await stream.stream({ live: true, json: true, offset })
response.subscribeJson(async ({ items, offset, upToDate }) => {
  console.log(JSON.stringify({ items, offset, upToDate }))
})
await response.closed
