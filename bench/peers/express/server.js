'use strict'
// A gateway of Express, http-proxy-middleware and jsonwebtoken, as tutorials write it; connections to the service are kept.
const fs = require('node:fs')
const http = require('node:http')
const express = require('express')
const jwt = require('jsonwebtoken')
const { createProxyMiddleware } = require('http-proxy-middleware')

const { PORT, UPSTREAM, PUBLIC_KEY, ISSUER, AUDIENCE } = process.env
const key = fs.readFileSync(PUBLIC_KEY)

function authenticate (request, response, next) {
  const [scheme, token] = (request.headers.authorization ?? '').split(' ')
  if (scheme !== 'Bearer') return response.sendStatus(401)
  jwt.verify(token, key, { algorithms: ['ES256'], issuer: ISSUER, audience: AUDIENCE }, (error, claims) => {
    if (error) return response.sendStatus(401)
    request.user = claims
    next()
  })
}

const app = express()
app.get('/hello', (_request, response) => response.json({ message: 'hello, world' }))
app.use('/v1/items', authenticate, createProxyMiddleware({
  target: `${UPSTREAM}/v1/items`,
  changeOrigin: true,
  agent: new http.Agent({ keepAlive: true })
}))
app.listen(Number(PORT), '127.0.0.1')
